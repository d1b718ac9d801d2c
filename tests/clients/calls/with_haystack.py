"""haystack-ai: its OpenAI embedders; those for TEI, Cohere, ollama and Jina, a package each."""

from haystack import Document
from haystack.components.embedders import OpenAIDocumentEmbedder, OpenAITextEmbedder
from haystack.utils import Secret
from haystack_integrations.components.embedders.cohere import (
    CohereDocumentEmbedder,
    CohereTextEmbedder,
)
from haystack_integrations.components.embedders.huggingface_api import (
    HuggingFaceAPIDocumentEmbedder,
    HuggingFaceAPITextEmbedder,
)
from haystack_integrations.components.embedders.jina import JinaDocumentEmbedder, JinaTextEmbedder
from haystack_integrations.components.embedders.ollama import (
    OllamaDocumentEmbedder,
    OllamaTextEmbedder,
)


def run(record, url, model, texts):
    few, many, long = texts["few"], texts["many"], texts["long"]
    key = Secret.from_token("sk-test")
    settings = {"api_key": key, "model": model, "api_base_url": f"{url}/v1", "max_retries": 0}

    def documents(embedder, chosen):
        answer = embedder.run(documents=[Document(content=text) for text in chosen])
        return [document.embedding for document in answer["documents"]]

    def one(embedder, text):
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

    cohere = {"api_key": key, "model": model, "api_base_url": url}
    document = CohereDocumentEmbedder(**cohere, progress_bar=False)  # version 1, input_type
    record.vectors("cohere documents", documents(document, many))
    query = CohereTextEmbedder(**cohere, input_type="search_query")
    record.vectors("cohere text", one(query, few[0]))

    ollama = {"model": model, "url": url}
    document = OllamaDocumentEmbedder(**ollama, progress_bar=False, prefix="search_document: ")
    record.vectors("ollama documents", documents(document, many))
    record.vectors("ollama text", one(OllamaTextEmbedder(**ollama), few[0]))

    # base_url is the whole address
    jina = {"api_key": key, "model": model, "base_url": f"{url}/v1/embeddings"}
    document = JinaDocumentEmbedder(**jina, progress_bar=False)
    record.vectors("jina documents", documents(document, many))
    short = JinaTextEmbedder(**jina, dimensions=64, prefix="search_query: ")
    record.vectors("jina text 64", one(short, few[0]))
