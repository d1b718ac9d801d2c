"""haystack's rankers: of cohere-haystack, jina-haystack and huggingface-api-haystack."""

from haystack import Document
from haystack.utils import Secret
from haystack_integrations.components.rankers.cohere import CohereRanker
from haystack_integrations.components.rankers.huggingface_api import HuggingFaceTEIRanker
from haystack_integrations.components.rankers.jina import JinaRanker


def run(record, url, model, texts):
    query, documents = texts["few"][0], texts["many"]
    key = Secret.from_token("unused")

    def call(name, ranker, **keywords):
        given = [Document(id=str(i), content=text) for i, text in enumerate(documents)]
        found = ranker.run(query=query, documents=given, **keywords)["documents"]
        record.ranking(name, [(int(each.id), each.score) for each in found])

    cohere = CohereRanker(model=model, api_key=key, api_base_url=url, top_k=len(documents))
    call("cohere", cohere)
    call("cohere top", cohere, top_k=3)
    # base_url is the whole address
    jina = JinaRanker(model=model, api_key=key, base_url=f"{url}/v1/rerank")
    call("jina", jina)  # sends top_n: null
    call("jina top", jina, top_k=3)
    tei = HuggingFaceTEIRanker(url=url, top_k=len(documents), token=None)
    call("tei", tei)
    call("tei top", tei, top_k=3)  # cuts the answer itself
    raw = HuggingFaceTEIRanker(url=url, top_k=len(documents), token=None, raw_scores=True)
    call("tei raw", raw)
