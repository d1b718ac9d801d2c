"""ollama: its client, synchronous and asynchronous, and the functions that read OLLAMA_HOST."""

import asyncio
import os


def run(record, url, model, texts):
    os.environ["OLLAMA_HOST"] = url
    import ollama  # reads OLLAMA_HOST when it is imported

    few, many, long = texts["few"], texts["many"], texts["long"]
    client = ollama.Client(host=url)

    def call(name, chosen, **keywords):
        answer = client.embed(**{"model": model, **keywords}, input=chosen)
        record.vectors(name, answer.embeddings, model=answer.model, tokens=answer.prompt_eval_count)

    call("embed", few)
    call("one", few[0])
    call("many", many)
    call("dimensions 64", few, dimensions=64)
    call("options", few, keep_alive="5m", options={"num_ctx": 8192})
    call("long", long)
    record.facts("nothing", embeddings=list(client.embed(model=model, input=[]).embeddings))
    # the older call: no list, no L2
    record.vectors(
        "embeddings", [client.embeddings(model=model, prompt=text).embedding for text in many[:3]]
    )
    record.vectors("module", ollama.embed(model=model, input=few).embeddings)

    listed = client.list().models
    sizes = [each.size for each in listed]
    record.facts("list", names=[each.model for each in listed], sizes=sizes)
    shown = client.show(model)
    record.facts(
        "show",
        capabilities=shown.capabilities,
        info=dict(shown.modelinfo),
        family=shown.details.family,
    )
    record.facts("ps", names=[each.model for each in client.ps().models])

    for name, make in (
        ("unknown model", lambda: client.embed(model="no-such-model", input=few)),
        ("show unknown", lambda: client.show("no-such-model")),
        ("too long", lambda: client.embed(model=model, input=long, truncate=False)),
        ("too wide", lambda: client.embed(model=model, input=few, dimensions=100_000)),
    ):
        with record.error(name, ollama.ResponseError):
            make()

    async def together():
        client = ollama.AsyncClient(host=url)
        parts = [many[i : i + 5] for i in range(0, len(many), 5)]
        return await asyncio.gather(*(client.embed(model=model, input=part) for part in parts))

    answers = asyncio.run(together())
    record.vectors("async", [row for answer in answers for row in answer.embeddings])
