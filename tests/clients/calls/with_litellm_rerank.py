"""litellm: `rerank` of the providers that reach a server of one's own."""

import asyncio

import litellm


def run(record, url, model, texts):
    query, documents = texts["few"][0], texts["many"]

    def asked(provider, base, **keywords):
        return {
            "model": f"{provider}/{model}",
            "query": query,
            "documents": documents,
            "api_base": base,
            "api_key": "sk-test",
            **keywords,
        }

    def store(name, answer):
        found = [(each["index"], each["relevance_score"]) for each in answer.results]
        given = [each["document"]["text"] for each in answer.results if each.get("document")]
        record.ranking(name, found, documents=given)

    for provider, base in (
        ("cohere", f"{url}/v2/rerank"),
        ("hosted_vllm", url),
        ("jina_ai", f"{url}/v1/rerank"),
        ("huggingface", url),
    ):
        store(provider, litellm.rerank(**asked(provider, base)))
        store(f"{provider} top", litellm.rerank(**asked(provider, base, top_n=3)))
    # its own fault: it takes the document of an answer for a string, and sends the request of
    # hosted_vllm, which wants an object
    with record.error("infinity", Exception):
        store("infinity", litellm.rerank(**asked("infinity", url)))
    answer = asyncio.run(litellm.arerank(**asked("hosted_vllm", url)))
    store("hosted_vllm async", answer)
