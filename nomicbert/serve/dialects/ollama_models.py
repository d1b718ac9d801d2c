"""Ollama's routes about models: GET /api/tags, /api/ps, /api/version, POST /api/show.

And those that are refused, because this server embeds only and loads no models for clients. Names
without a tag are listed with ":latest", as ollama lists them.
"""

import datetime
from collections.abc import Awaitable, Callable

import msgspec

from nomicbert import __version__
from nomicbert.serve.dialects.ollama import LATEST, find
from nomicbert.serve.http.answers import Answer, as_json
from nomicbert.serve.http.exchange import Exchange, decode
from nomicbert.serve.http.problems import Problem, Reason
from nomicbert.serve.served import ServedEmbedder
from nomicbert.serve.service import Service

# Models stay loaded: ollama states when it will drop one.
FOREVER = datetime.timedelta(days=36_500)
DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


class OllamaShowRequest(msgspec.Struct):
    """The body of POST /api/show; `name` is its old key."""

    model: str | None = None
    name: str | None = None


async def tags(service: Service, _exchange: Exchange) -> Answer:
    """GET /api/tags: every name that a request may give."""
    models = service.models
    names = {tagged(name): models[index] for name, index in service.names.by_name.items()}
    found = [
        {**_entry(name, model), "modified_at": _time(service.started)}
        for name, model in names.items()
        if isinstance(model, ServedEmbedder)
    ]
    return as_json({"models": found})


async def running(service: Service, _exchange: Exchange) -> Answer:
    """GET /api/ps: the loaded models, which are all that embed."""
    found = [
        {
            **_entry(tagged(model.name), model),
            "expires_at": _time(service.started + FOREVER),
            "size_vram": 0 if model.embedder.device.type == "cpu" else _size(model),
            "context_length": model.max_length,
        }
        for model in service.models
        if isinstance(model, ServedEmbedder)
    ]
    return as_json({"models": found})


async def show(service: Service, exchange: Exchange) -> Answer:
    """POST /api/show: facts about a model."""
    service.find(None)
    body = decode(await exchange.body(service.settings.payload_limit), OllamaShowRequest)
    model = find(service, body.name if body.model is None else body.model)
    config, family = model.embedder.model.config, _family(model)
    facts = {
        "general.architecture": family,
        "general.parameter_count": _parameters(model),
        f"{family}.attention.head_count": config.num_attention_heads,
        f"{family}.block_count": config.num_hidden_layers,
        f"{family}.context_length": model.max_length,
        f"{family}.embedding_length": model.width,
        f"{family}.pooling": model.embedder.pooling.mode,
    }
    return as_json(
        {
            "modelfile": "",
            "parameters": "",
            "template": "{{ .Prompt }}",
            "details": _details(model),
            "model_info": facts,
            "capabilities": ["embedding"],
            "modified_at": _time(service.started),
        }
    )


async def version(_service: Service, _exchange: Exchange) -> Answer:
    """GET /api/version: of this package."""
    return as_json({"version": __version__})


def wrong_task(task: str) -> Callable[[Service, Exchange], Awaitable[Answer]]:
    """The handler of a route for what embedding models cannot do."""

    async def handler(service: Service, _exchange: Exchange) -> Answer:
        service.find(None)
        raise Problem(Reason.WRONG_TASK, f"this server embeds only: its models do not {task}")

    return handler


async def unsupported(_service: Service, _exchange: Exchange) -> Answer:
    """The handler of the routes that change which models there are."""
    raise Problem(
        Reason.UNSUPPORTED,
        "requests cannot download, create, copy or delete models here: they are chosen when the "
        "server starts (nomicbert serve --model)",
    )


def tagged(name: str) -> str:
    """A name with its tag."""
    return name if ":" in name.rsplit("/", 1)[-1] else name + LATEST


def _entry(name: str, model: ServedEmbedder) -> dict[str, object]:
    return {
        "name": name,
        "model": name,
        "size": _size(model),
        "digest": model.fingerprint.model,
        "details": _details(model),
    }


def _details(model: ServedEmbedder) -> dict[str, object]:
    family, dtype = _family(model), str(model.embedder.model.dtype).removeprefix("torch.")
    return {
        "parent_model": "",
        "format": "safetensors",
        "family": family,
        "families": [family],
        "parameter_size": _human(_parameters(model)),
        "quantization_level": DTYPES.get(dtype, dtype),
    }


def _family(model: ServedEmbedder) -> str:
    return model.embedder.model.config.model_type.replace("_", "-")


def _parameters(model: ServedEmbedder) -> int:
    return sum(each.numel() for each in model.embedder.embedding_model.parameters())


def _size(model: ServedEmbedder) -> int:
    """Bytes of the parameters."""
    parameters = model.embedder.embedding_model.parameters()
    return sum(each.numel() * each.element_size() for each in parameters)


def _human(count: int) -> str:
    """A number of parameters as ollama writes it, such as 137M."""
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if count >= size:
            value = count / size
            return f"{value:.0f}{unit}" if value >= 100 else f"{value:.1f}{unit}"
    return str(count)


def _time(moment: datetime.datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")
