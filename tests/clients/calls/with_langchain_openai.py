"""langchain-openai: OpenAIEmbeddings."""

import asyncio
import os
from importlib import util
from pathlib import Path

import openai
from langchain_openai import OpenAIEmbeddings


def run(record, url, model, texts):
    few, many = texts["few"], texts["many"]
    settings = {"base_url": f"{url}/v1", "api_key": "sk-test", "model": model, "max_retries": 0}

    text = OpenAIEmbeddings(**settings, check_embedding_ctx_length=False)
    record.vectors("documents", text.embed_documents(few))
    record.vectors("query", [text.embed_query(few[0])])
    record.vectors("async", asyncio.run(text.aembed_documents(many)))
    short = OpenAIEmbeddings(**settings, check_embedding_ctx_length=False, dimensions=64)
    record.vectors("dimensions 64", short.embed_documents(few))

    # The default splits texts with tiktoken and sends its token ids. tiktoken downloads its
    # vocabulary, but llama-index, installed here as well, ships a copy of the cache.
    core = Path(util.find_spec("llama_index.core").submodule_search_locations[0])
    os.environ["TIKTOKEN_CACHE_DIR"] = str(core / "_static" / "tiktoken_cache")
    ids = OpenAIEmbeddings(**settings)
    with record.error("token ids", openai.OpenAIError):
        ids.embed_documents(few)
    with record.error("token ids of a query", openai.OpenAIError):
        ids.embed_query(few[0])
