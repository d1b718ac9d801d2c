"""langchain-huggingface: HuggingFaceEndpointEmbeddings, on top of huggingface_hub."""

from huggingface_hub import InferenceClient
from langchain_huggingface import HuggingFaceEndpointEmbeddings


def run(record, url, model, texts):
    few, many = texts["few"], texts["many"]
    # its own fault: it takes no address since version 1
    with record.error("address", ValueError):
        HuggingFaceEndpointEmbeddings(model=url, huggingfacehub_api_token="hf_test")
    # but asks the client that it is given
    embeddings = HuggingFaceEndpointEmbeddings(
        model=model, huggingfacehub_api_token="hf_test", provider="hf-inference"
    )
    embeddings.client = InferenceClient(model=url)
    record.vectors("documents", embeddings.embed_documents(many))
    record.vectors("query", [embeddings.embed_query(few[0])])
