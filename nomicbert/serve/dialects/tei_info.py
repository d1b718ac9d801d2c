"""TEI's GET /info: facts about the first model."""

from nomicbert import __version__
from nomicbert.serve.http.answers import Answer, as_json
from nomicbert.serve.http.exchange import Exchange
from nomicbert.serve.scorers import ServedScorer
from nomicbert.serve.served import ServedEmbedder
from nomicbert.serve.service import Service


async def info(service: Service, _exchange: Exchange) -> Answer:
    """GET /info."""
    model, settings = service.models[0], service.settings
    encoder = model.encoder
    loaded = service.loaded
    assert loaded is not None, "`models` has checked it"
    kind: dict[str, object] = {}
    more: dict[str, object] = {}
    if isinstance(model, ServedEmbedder):
        kind = {"embedding": {"pooling": model.embedder.pooling.mode}}
        more = {"dimensions": model.width, "prompts": model.embedder.prompts}
        more["fingerprint"] = model.space
    elif isinstance(model, ServedScorer):
        labels = {
            "id2label": {str(number): label for number, label in enumerate(model.labels)},
            "label2id": {label: number for number, label in enumerate(model.labels)},
        }
        kind = {model.kind: labels}
    return as_json(
        {
            "model_id": model.name,
            "model_sha": None,
            "model_dtype": str(encoder.dtype).removeprefix("torch."),
            "served_model_name": model.name,
            "model_type": kind,
            "max_concurrent_requests": settings.max_waiting_requests,
            "max_input_length": model.max_length,
            "max_batch_tokens": loaded.budgets[model.index],
            "max_batch_requests": None,
            "max_client_batch_size": settings.max_client_batch_size,
            "auto_truncate": settings.auto_truncate,
            "tokenization_workers": settings.tokenizer_threads,
            "version": __version__,
            "sha": None,
            "docker_label": None,
            "backend": encoder.ops.name,
            **more,
        }
    )
