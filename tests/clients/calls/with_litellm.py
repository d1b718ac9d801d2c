"""litellm: the providers that reach a server of one's own."""

import asyncio
import base64
import warnings
from array import array

import litellm
import openai


def run(record, url, model, texts):
    few, many = texts["few"], texts["many"]

    def store(name, answer):
        rows = [item["embedding"] for item in answer.data]
        if isinstance(rows[0], str):  # litellm hands base64 on as it came
            rows = [array("f", base64.b64decode(row)) for row in rows]
        record.vectors(name, rows, usage=answer.usage.model_dump(), model=answer.model)

    embed, key = litellm.embedding, {"api_key": "sk-test", "max_retries": 0}
    v1 = {"api_base": f"{url}/v1", **key}
    store("openai", embed(f"openai/{model}", input=few, **v1))
    store("openai float", embed(f"openai/{model}", input=few, encoding_format="float", **v1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # pydantic: litellm's own type says floats
        based = embed(f"openai/{model}", input=few, encoding_format="base64", **v1)
    store("openai base64", based)
    # A model that litellm does not know takes `dimensions` only when it is told so.
    told = {"dimensions": 64, "allowed_openai_params": ["dimensions"]}
    store("openai dimensions 64", embed(f"openai/{model}", input=few, **told, **v1))
    store("hosted_vllm", embed(f"hosted_vllm/{model}", input=few, **v1))
    store("infinity", embed(f"infinity/{model}", input=few, api_base=url, api_key="sk-test"))
    face = {"api_base": f"{url}/embed", "api_key": "hf-test", "input_type": "feature-extraction"}
    store("huggingface", embed(f"huggingface/{model}", input=few, **face))
    store("ollama", embed(f"ollama/{model}", input=few, api_base=url))
    with record.error("unknown model", openai.OpenAIError):
        embed("openai/no-such-model", input=few, **v1)

    async def together():
        parts = [many[i : i + 5] for i in range(0, len(many), 5)]
        return await asyncio.gather(
            *(litellm.aembedding(f"openai/{model}", input=part, **v1) for part in parts)
        )

    answers = asyncio.run(together())
    record.vectors(
        "openai async", [item["embedding"] for answer in answers for item in answer.data]
    )
