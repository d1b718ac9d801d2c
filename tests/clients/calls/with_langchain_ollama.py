"""langchain-ollama: OllamaEmbeddings."""

import asyncio

import ollama
from langchain_ollama import OllamaEmbeddings


def run(record, url, model, texts):
    few, many = texts["few"], texts["many"]
    # asks for the list of models at once
    embeddings = OllamaEmbeddings(model=model, base_url=url, validate_model_on_init=True)
    record.vectors("documents", embeddings.embed_documents(few))
    record.vectors("query", [embeddings.embed_query(few[0])])
    record.vectors("async", asyncio.run(embeddings.aembed_documents(many)))
    with record.error("unknown model", ValueError):
        OllamaEmbeddings(model="no-such-model", base_url=url, validate_model_on_init=True)
    with record.error("unknown model of a call", ollama.ResponseError):
        OllamaEmbeddings(model="no-such-model", base_url=url).embed_documents(few)
