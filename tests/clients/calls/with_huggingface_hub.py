"""huggingface_hub: InferenceClient against TEI's routes."""

import asyncio

from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.errors import HfHubHTTPError


def run(record, url, model, texts):
    few, many, long = texts["few"], texts["many"], texts["long"]
    with InferenceClient(model=url) as client:  # POST /
        embed = client.feature_extraction
        record.vectors("default", embed(few))
        record.vectors("one", embed(few[0]))
        record.vectors("normalize", embed(few, normalize=True))
        record.vectors("dimensions 64", embed(few, dimensions=64))
        if "nomic" in model:  # has prompts, and no Normalize module
            record.vectors("not normalised", embed(few, normalize=False))
            record.vectors("prompt_name", embed(few, prompt_name="search_query"))
        record.vectors("long", embed(long, truncate=True))
        with record.error("too long", HfHubHTTPError):
            embed(long, truncate=False)
        with record.error("unknown prompt", HfHubHTTPError):
            embed(few, prompt_name="no-such-prompt")
        scores = client.sentence_similarity(few[0], other_sentences=few[1:4])
        record.vectors("similarity", [scores])
    with InferenceClient(base_url=url) as client:
        record.vectors("base_url", client.feature_extraction(few))
    with InferenceClient(model=f"{url}/embed") as client:
        record.vectors("route", client.feature_extraction(few))

    async def together():
        async with AsyncInferenceClient(model=url) as client:
            parts = [many[i : i + 5] for i in range(0, len(many), 5)]
            return await asyncio.gather(*(client.feature_extraction(part) for part in parts))

    record.vectors("async", [row for rows in asyncio.run(together()) for row in rows])
