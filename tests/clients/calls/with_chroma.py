"""chromadb: its embedding functions, alone and in a collection."""

import os

import chromadb
from chromadb.utils.embedding_functions import (
    CohereEmbeddingFunction,
    HuggingFaceEmbeddingServer,
    NomicEmbeddingFunction,
    OllamaEmbeddingFunction,
    OpenAIEmbeddingFunction,
)


def run(record, url, model, texts):
    few, many = texts["few"], texts["many"]
    os.environ["CHROMA_OPENAI_API_KEY"] = "sk-test"
    openai = OpenAIEmbeddingFunction(model_name=model, api_base=f"{url}/v1")
    tei = HuggingFaceEmbeddingServer(url=f"{url}/embed")
    ollama = OllamaEmbeddingFunction(url=url, model_name=model)
    # Cohere's function has no argument for the address; the cohere library reads this
    os.environ.update(CO_API_URL=url, CHROMA_COHERE_API_KEY="unused")
    cohere = CohereEmbeddingFunction(model_name=model)  # always as search_document
    functions = {"openai": openai, "tei": tei, "ollama": ollama, "cohere": cohere}
    for name, function in functions.items():
        record.vectors(name, function(few))
    # its own fault: it looks for an attribute that the answer of nomic's `embed.text` lacks
    os.environ.update(NOMIC_API_KEY="nk-test", ATLAS_API_PATH=url)
    import nomic

    nomic.login("nk-test")
    function = NomicEmbeddingFunction(model=model, task_type="search_document", query_config=None)
    with record.error("nomic", AttributeError):
        function(few)

    client = chromadb.EphemeralClient()
    for name, function in functions.items():
        collection = client.create_collection(name, embedding_function=function)
        ids = [str(number) for number in range(len(many))]
        collection.add(ids=ids, documents=many)
        held = collection.get(ids=ids, include=["embeddings"])
        rows = dict(zip(held["ids"], held["embeddings"], strict=True))
        record.vectors(f"{name} collection", [rows[each] for each in ids])
        found = collection.query(query_texts=many[:3], n_results=1)
        record.facts(f"{name} nearest", ids=[each[0] for each in found["ids"]])
