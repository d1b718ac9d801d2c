"""infinity_client: `rerank`."""

from infinity_client import Client
from infinity_client.api.default import rerank
from infinity_client.models import RerankInput


def run(record, url, model, texts):
    query, documents = texts["few"][0], texts["many"]
    client = Client(base_url=url)
    for name, keywords in (
        ("default", {}),
        ("plain", {"return_documents": False}),
        ("raw", {"raw_scores": True}),
        ("top", {"top_n": 3}),
    ):
        asked = {"query": query, "documents": documents, "model": model, **keywords}
        answer = rerank.sync(client=client, body=RerankInput.from_dict(asked))
        found = [(each.index, each.relevance_score) for each in answer.results]
        record.ranking(name, found, model=answer.model)
