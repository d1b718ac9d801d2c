"""nomic: `embed.text` as users call it; only ATLAS_API_PATH says where."""

import os

TASKS = ("search_query", "search_document", "classification", "clustering")


def run(record, url, model, texts):
    os.environ["ATLAS_API_PATH"] = url
    import nomic  # reads HOME when it is imported
    from nomic import embed

    nomic.login("nk-test")  # a token that begins with nk- is stored without a request

    def call(name, chosen, **keywords):
        answer = embed.text(chosen, model=model, **keywords)
        facts = {key: answer[key] for key in ("usage", "inference_mode")}
        record.vectors(name, answer["embeddings"], **facts)

    few, many, long = texts["few"], texts["many"], texts["long"]
    for task in TASKS:
        call(task, few, task_type=task)
    call("default", few)
    # the client refuses an answer for another name than the one that it sent
    other = embed.text(few[:2], model=f"nomic-ai/{model}")
    record.vectors("other name", other["embeddings"], inference_mode=other["inference_mode"])
    call("many", many, task_type="search_document")  # 13 requests of at most two texts
    call("dimensions 64", few, task_type="search_query", dimensionality=64)
    call("dimensions 32", few, task_type="clustering", dimensionality=32)
    call("long", long, task_type="search_document", long_text_mode="truncate")
    call("long mean", long, task_type="search_document", long_text_mode="mean")
    call("long mean 64", long, task_type="search_query", long_text_mode="mean", dimensionality=64)
    record.facts("nothing", answer=embed.text([], model=model))
    with record.error("unknown model", Exception):  # the client raises no class of its own
        embed.text(["x"], model="no-such-model")
    with record.error("too wide", Exception):
        embed.text(["x"], model=model, dimensionality=100_000)
