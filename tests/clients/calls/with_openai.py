"""openai, synchronous and asynchronous."""

import asyncio

import openai


def run(record, url, model, texts):
    few, many, long = texts["few"], texts["many"], texts["long"]
    settings = {"base_url": f"{url}/v1", "api_key": "sk-test", "max_retries": 0}

    def store(name, answer):
        usage = answer.usage.model_dump()
        indexes = [item.index for item in answer.data]
        rows = [item.embedding for item in answer.data]
        record.vectors(name, rows, model=answer.model, usage=usage, indexes=indexes)

    with openai.OpenAI(**settings) as client:
        create = client.embeddings.create
        store("default", create(model=model, input=few))  # sends encoding_format base64
        store("float", create(model=model, input=few, encoding_format="float"))
        store("one", create(model=model, input=few[0]))
        store("dimensions 64", create(model=model, input=few, dimensions=64))
        store("dimensions 32", create(model=model, input=few, dimensions=32,
                                      encoding_format="float"))  # fmt: skip
        if "nomic" in model:  # has prompts
            body = {"task_type": "clustering"}
            store("task_type", create(model=model, input=few, extra_body=body))
        models = client.models.list()
        record.facts("models", ids=[each.id for each in models], object=models.object)
        record.facts("retrieve", id=client.models.retrieve(model).id)
        with record.error("unknown model", openai.OpenAIError):
            create(model="no-such-model", input=few)
        with record.error("retrieve unknown", openai.OpenAIError):
            client.models.retrieve("nobody/no-such-model")
        with record.error("too long", openai.OpenAIError):
            create(model=model, input=long)
        with record.error("token ids", openai.OpenAIError):
            create(model=model, input=[[3923, 374, 350, 21225, 30]])
        with record.error("no text", openai.OpenAIError):
            create(model=model, input=[])
        with record.error("too wide", openai.OpenAIError):
            create(model=model, input=few, dimensions=100_000)

    async def together():
        async with openai.AsyncOpenAI(**settings) as client:
            parts = [many[i : i + 5] for i in range(0, len(many), 5)]
            jobs = [client.embeddings.create(model=model, input=part) for part in parts]
            return await asyncio.gather(*jobs)

    answers = asyncio.run(together())
    rows = [item.embedding for answer in answers for item in answer.data]
    record.vectors("async", rows, indexes=[item.index for item in answers[-1].data])
