"""cohere: `rerank` of its clients of version 1 and 2."""

import cohere
from cohere.core.api_error import ApiError

NO_RETRY = {"max_retries": 0}


def run(record, url, model, texts):
    query, documents = texts["few"][0], texts["many"]
    settings = {"api_key": "unused", "base_url": url}

    def call(name, client, chosen, **keywords):
        answer = client.rerank(
            **{"model": model, **keywords}, query=query, documents=chosen, request_options=NO_RETRY
        )
        found = [(each.index, each.relevance_score) for each in answer.results]
        given = [each.document.text for each in answer.results if getattr(each, "document", None)]
        record.ranking(name, found, documents=given)

    with cohere.ClientV2(**settings) as client:
        call("v2", client, documents)
        call("v2 top", client, documents, top_n=3)
        call("v2 length", client, documents, max_tokens_per_doc=4096)
        with record.error("v2 unknown model", ApiError):
            call("v2 unknown model", client, documents, model="no-such-model")
    with cohere.Client(**settings) as client:
        call("v1", client, documents)
        call("v1 objects", client, [{"text": document} for document in documents])
        call("v1 documents", client, documents, return_documents=True, top_n=2)
        with record.error("v1 unknown model", ApiError):
            call("v1 unknown model", client, documents, model="no-such-model")
