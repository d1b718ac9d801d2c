"""cohere: `embed` of its clients of version 1 and 2."""

import asyncio

import cohere
from cohere.core.api_error import ApiError

TASKS = ("search_query", "search_document", "classification", "clustering")
NO_RETRY = {"max_retries": 0}


def run(record, url, model, texts):
    few, many, long = texts["few"], texts["many"], texts["long"]
    settings = {"api_key": "unused", "base_url": url}

    with cohere.ClientV2(**settings) as client:

        def embed(chosen, task="search_document", **keywords):
            keywords = {"model": model, "embedding_types": ["float"], **keywords}
            return client.embed(texts=chosen, input_type=task, request_options=NO_RETRY, **keywords)

        def call(name, *arguments, **keywords):
            answer = embed(*arguments, **keywords)
            record.vectors(name, answer.embeddings.float_, **facts(answer))

        for task in TASKS:
            call(f"v2 {task}", few, task)
        call("v2 many", many)
        call("v2 dimensions 64", few, output_dimension=64)
        call("v2 long", long, truncate="END")
        everything = embed(few, embedding_types=["float", "int8", "uint8", "binary", "ubinary"])
        for kind, rows in (
            ("float", everything.embeddings.float_),
            ("int8", everything.embeddings.int8),
            ("uint8", everything.embeddings.uint8),
            ("binary", everything.embeddings.binary),
            ("ubinary", everything.embeddings.ubinary),
        ):
            record.vectors(f"v2 all {kind}", rows)
        short = embed(few, "search_query", embedding_types=["ubinary"], output_dimension=64)
        record.vectors("v2 ubinary 64", short.embeddings.ubinary)
        with record.error("v2 unknown model", ApiError):
            embed(few, model="no-such-model")
        with record.error("v2 too long", ApiError):
            embed(long, truncate="NONE")
        with record.error("v2 too wide", ApiError):
            embed(few, output_dimension=100_000)

    with cohere.Client(**settings) as client:  # in parts of 96 texts, several at once

        def call_v1(name, chosen, task="search_document", **keywords):
            answer = client.embed(
                texts=chosen, model=model, input_type=task, request_options=NO_RETRY, **keywords
            )
            record.vectors(name, answer.embeddings, **facts(answer))

        call_v1("v1", few)
        call_v1("v1 query", few[:1], "search_query")
        call_v1("v1 parts", many * 8)
        call_v1("v1 long", long, truncate="END")
        typed = client.embed(
            texts=few, model=model, input_type="clustering", embedding_types=["float", "int8"]
        )
        record.vectors("v1 typed float", typed.embeddings.float_)
        record.vectors("v1 typed int8", typed.embeddings.int8)
        with record.error("v1 unknown model", ApiError):
            client.embed(texts=few, model="no-such-model", input_type="clustering")

    async def together():
        async with cohere.AsyncClientV2(**settings) as client:
            parts = [many[i : i + 5] for i in range(0, len(many), 5)]
            return await asyncio.gather(
                *(
                    client.embed(
                        texts=part,
                        model=model,
                        input_type="search_query",
                        embedding_types=["float"],
                    )
                    for part in parts
                )
            )

    answers = asyncio.run(together())
    record.vectors("v2 async", [row for answer in answers for row in answer.embeddings.float_])


def facts(answer):
    meta = answer.meta
    return {
        "warnings": meta.warnings,
        "tokens": meta.billed_units.input_tokens,
        "version": meta.api_version.version,
        "texts": answer.texts,
    }
