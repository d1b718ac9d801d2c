"""nomic: `embed.text` as users call it; only ATLAS_API_PATH says where.

`make_calls` is also given nomicbert's own `embed`, in place of the client's.
"""

import os

TASKS = ("search_query", "search_document", "classification", "clustering")


def run(record, url, model, texts):
    os.environ["ATLAS_API_PATH"] = url
    import nomic  # reads HOME when it is imported
    from form import form
    from nomic import embed

    nomic.login("nk-test")  # a token that begins with nk- is stored without a request
    make_calls(embed, form, record, model, texts)


def make_calls(embed, form, record, model, texts):
    def call(name, chosen, **keywords):
        answer = embed.text(chosen, **{"model": model, **keywords})
        facts = {key: answer[key] for key in ("usage", "inference_mode", "model")}
        record.vectors(name, answer["embeddings"], form=form(answer), **facts)

    few, many, long = texts["few"], texts["many"], texts["long"]
    for task in TASKS:
        call(task, few, task_type=task)
    call("default", few)
    # the client refuses an answer for another name than the one that it sent
    call("other name", few[:2], model=f"nomic-ai/{model}")
    call("many", many, task_type="search_document")  # 13 requests of at most two texts
    call("dimensions 64", few, task_type="search_query", dimensionality=64)
    call("dimensions 32", few, task_type="clustering", dimensionality=32)
    call("long", long, task_type="search_document", long_text_mode="truncate")
    call("long mean", long, task_type="search_document", long_text_mode="mean")
    call("long mean 64", long, task_type="search_query", long_text_mode="mean", dimensionality=64)
    call("remote", few, inference_mode="remote", device=None)
    record.facts("nothing", answer=embed.text([], model=model))
    # the client raises no class of its own
    for name, chosen, keywords in (
        ("unknown model", ["x"], {"model": "no-such-model"}),
        ("too wide", ["x"], {"dimensionality": 100_000}),
        ("no dimensions", ["x"], {"dimensionality": 0}),
        ("lone text", "x", {}),
        ("unknown task", ["x"], {"task_type": "separation"}),
        ("unknown mode", ["x"], {"inference_mode": "cloud"}),
        ("unknown treatment", ["x"], {"long_text_mode": "chunk"}),
        ("unknown keyword", ["x"], {"dimension": 64}),
    ):
        with record.error(name, Exception):
            embed.text(chosen, **{"model": model, **keywords})
