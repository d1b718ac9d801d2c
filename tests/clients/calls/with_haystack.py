"""haystack-ai: its OpenAI embedders, and those of huggingface-api-haystack."""

from haystack import Document
from haystack.components.embedders import OpenAIDocumentEmbedder, OpenAITextEmbedder
from haystack.utils import Secret
from haystack_integrations.components.embedders.huggingface_api import (
    HuggingFaceAPIDocumentEmbedder,
    HuggingFaceAPITextEmbedder,
)


def run(record, url, model, texts):
    few, many, long = texts["few"], texts["many"], texts["long"]
    key = Secret.from_token("sk-test")
    settings = {"api_key": key, "model": model, "api_base_url": f"{url}/v1", "max_retries": 0}

    def documents(embedder, chosen):
        embedder.warm_up()
        answer = embedder.run(documents=[Document(content=text) for text in chosen])
        return [document.embedding for document in answer["documents"]]

    def one(embedder, text):
        embedder.warm_up()
        return [embedder.run(text=text)["embedding"]]

    openai = OpenAIDocumentEmbedder(**settings, progress_bar=False)
    record.vectors("openai documents", documents(openai, many))
    record.vectors("openai text", one(OpenAITextEmbedder(**settings), few[0]))
    prefixed = OpenAITextEmbedder(**settings, prefix="search_query: ", dimensions=64)
    record.vectors("openai query 64", one(prefixed, few[0]))

    tei = {"api_type": "text_embeddings_inference", "api_params": {"url": url}, "token": None}
    plain = HuggingFaceAPIDocumentEmbedder(**tei, progress_bar=False)  # sends normalize: false
    record.vectors("tei documents", documents(plain, many))
    unit = HuggingFaceAPIDocumentEmbedder(**tei, progress_bar=False, normalize=True)
    record.vectors("tei normalised", documents(unit, many))
    record.vectors("tei long", documents(plain, long))
    record.vectors("tei text", one(HuggingFaceAPITextEmbedder(**tei), few[0]))
