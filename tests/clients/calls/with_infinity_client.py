"""infinity_client: the client of Infinity's routes."""

from infinity_client import AuthenticatedClient, Client
from infinity_client.api.default import embeddings
from infinity_client.models import OpenAIEmbeddingInputText


def run(record, url, model, texts):
    few, many = texts["few"], texts["many"]

    def call(name, client, chosen, **keywords):
        body = OpenAIEmbeddingInputText.from_dict({"input": chosen, "model": model, **keywords})
        answer = embeddings.sync(client=client, body=body)
        rows = [item.embedding for item in answer.data]
        record.vectors(
            name,
            rows,
            indexes=[item.index for item in answer.data],
            model=answer.model,
            tokens=answer.usage.prompt_tokens,
        )

    client = Client(base_url=url)
    call("embeddings", client, few)
    call("one", client, few[0])
    call("many", client, many)
    call("dimensions 64", client, few, dimensions=64)
    call("key", AuthenticatedClient(base_url=url, token="unused"), few)
