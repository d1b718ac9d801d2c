"""llama-index: its OpenAI-like, TEI and ollama embeddings."""

import asyncio

from llama_index.embeddings.ollama import OllamaEmbedding
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.embeddings.text_embeddings_inference import TextEmbeddingsInference


def run(record, url, model, texts):
    few, many, long = texts["few"], texts["many"], texts["long"]
    settings = {"model_name": model, "api_base": f"{url}/v1", "api_key": "sk-test"}
    settings["max_retries"] = 0
    like = OpenAILikeEmbedding(**settings)
    record.vectors("openai batch", like.get_text_embedding_batch(few))
    record.vectors("openai query", [like.get_query_embedding(few[0])])
    record.vectors("openai async", asyncio.run(like.aget_text_embedding_batch(many)))
    short = OpenAILikeEmbedding(**settings, dimensions=64)
    record.vectors("openai dimensions 64", short.get_text_embedding_batch(few))

    tei = TextEmbeddingsInference(model_name=model, base_url=url)  # POST /embed
    record.vectors("tei batch", tei.get_text_embedding_batch(many))
    record.vectors("tei query", [tei.get_query_embedding(few[0])])
    record.vectors("tei long", tei.get_text_embedding_batch(long))
    record.vectors("tei async", asyncio.run(tei.aget_text_embedding_batch(few)))
    # The class puts these before the text; nomic checkpoints want them.
    asked = TextEmbeddingsInference(
        model_name=model,
        base_url=url,
        query_instruction="search_query:",
        text_instruction="search_document:",
    )
    record.vectors("tei asked query", [asked.get_query_embedding(few[0])])
    record.vectors("tei asked batch", asked.get_text_embedding_batch(many))

    ollama = OllamaEmbedding(model_name=model, base_url=url)
    record.vectors("ollama batch", ollama.get_text_embedding_batch(many))
    record.vectors("ollama query", [ollama.get_query_embedding(few[0])])
    record.vectors("ollama async", asyncio.run(ollama.aget_text_embedding_batch(many)))
    prompts = {"query_instruction": "search_query:", "text_instruction": "search_document:"}
    asked = OllamaEmbedding(model_name=model, base_url=url, **prompts)
    record.vectors("ollama asked query", [asked.get_query_embedding(few[0])])
    record.vectors("ollama asked batch", asked.get_text_embedding_batch(many))
