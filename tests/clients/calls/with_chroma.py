"""chromadb: its embedding functions, alone and in a collection."""

import os

import chromadb
from chromadb.utils.embedding_functions import HuggingFaceEmbeddingServer, OpenAIEmbeddingFunction


def run(record, url, model, texts):
    few, many = texts["few"], texts["many"]
    os.environ["CHROMA_OPENAI_API_KEY"] = "sk-test"
    openai = OpenAIEmbeddingFunction(model_name=model, api_base=f"{url}/v1")
    tei = HuggingFaceEmbeddingServer(url=f"{url}/embed")
    record.vectors("openai", openai(few))
    record.vectors("tei", tei(few))

    client = chromadb.EphemeralClient()
    for name, function in (("openai", openai), ("tei", tei)):
        collection = client.create_collection(name, embedding_function=function)
        ids = [str(number) for number in range(len(many))]
        collection.add(ids=ids, documents=many)
        held = collection.get(ids=ids, include=["embeddings"])
        rows = dict(zip(held["ids"], held["embeddings"], strict=True))
        record.vectors(f"{name} collection", [rows[each] for each in ids])
        found = collection.query(query_texts=many[:3], n_results=1)
        record.facts(f"{name} nearest", ids=[each[0] for each in found["ids"]])
