"""Nomic's hosted call without a server: the client's `embed.text`, with only the import changed.

Where in the flow: over `Embedder`, with the rules of `runtime.hosted`, which the server's route
POST /v1/embedding/text has too. What needs torch is imported by the first call.

Source: the Python client nomic 3.9.
"""

import logging
import os
from typing import TYPE_CHECKING, Literal, TypedDict, cast

from nomicbert.runtime.kept import Kept

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from nomicbert.embedder import Embedder
    from nomicbert.modeling.call_types import NoKeywords
    from nomicbert.runtime.hosted import LongTextMode

__all__ = ["MOST_MODELS", "TextEmbeddings", "free_embedding_model", "text"]

# Models that stay loaded: those used last.
MOST_MODELS = 2
# Below this width the client warns.
LEAST_ADVISED = 64

MODES = ("truncate", "mean")
# Where the client would compute; here it is always this process.
INFERENCE_MODES = ("remote", "local", "dynamic")
# The client's words for a device -> torch's.
DEVICES = {"gpu": "cuda", "nvidia": "cuda"}
# Names of the hosted API that are not the last part of a repository's id.
ALIASES = {"nomic-embed-text-v2": "nomic-ai/nomic-embed-text-v2-moe"}
# Models of the hosted API with an architecture that is not here.
ELSEWHERE = ("gte-multilingual-base", "nomic-embed-code")

# Keywords of gpt4all, of the hosted API and of `Embedder.encode` -> what to do.
INSTEAD = {
    "allow_download": "set HF_HUB_OFFLINE=1, which forbids requests",
    "matryoshka_dim": "give dimensionality",
    "max_length": "give n_ctx",
    "max_tokens_per_text": "give n_ctx, or use Embedder.encode, whose windows have no limit",
    "model_path": "give the folder as model",
    "n_threads": "call torch.set_num_threads",
    "ngl": "choose device='cpu' or 'gpu'",
    "on_long": "give long_text_mode",
    "prompt_name": "give task_type",
    "truncate": "give long_text_mode",
    "truncate_dim": "give dimensionality",
}

logger = logging.getLogger(__name__)


class TextEmbeddings(TypedDict):
    """What `text` returns.

    Attributes:
        embeddings: one vector per text, its values those of float32.
        usage: prompt_tokens and total_tokens, prompts and special tokens included, and
            truncated_texts. Empty for an empty list, as in the client.
        model: as it was given.
        inference_mode: "local", where the client has "remote".
    """

    embeddings: list[list[float]]
    usage: dict[str, int]
    model: str
    inference_mode: Literal["local"]


def text(
    texts: list[str] | tuple[str, ...],
    *,
    model: str | os.PathLike[str] = "nomic-embed-text-v1.5",
    task_type: str = "search_document",
    dimensionality: int | None = None,
    long_text_mode: str = "truncate",
    inference_mode: str = "remote",
    device: str | None = None,
    n_ctx: int | None = None,
    **unknown: "Unpack[NoKeywords]",
) -> TextEmbeddings:
    """Embed texts by the call of nomic's client, in this process (docs/clients.md).

    The vectors are those that the server's POST /v1/embedding/text returns for the same request.

    Args:
        texts: any ordered collection of texts. An empty one loads no model.
        model: a folder, the id of a repository, or its last part.
        task_type: "search_query", "search_document", "classification" or "clustering": the prompt
            put before every text.
        dimensionality: width of the vectors, by the recipe (layer_norm,) slice, L2; default all.
        long_text_mode: "truncate" cuts longer texts and warns once per call; "mean" averages the
            vectors of windows, over at most 8192 tokens per text.
        inference_mode: "remote", "local" or "dynamic", for existing call sites. It has no effect.
        device: "cpu", "gpu", "cuda:1", ...; default a GPU if there is one.
        n_ctx: maximum tokens per text or window, if that is less than the model's own limit.
        **unknown: none; an error names the nearest known keyword.

    >>> answer = text(["What is TSNE?"], task_type="search_query", dimensionality=256)
    >>> len(answer["embeddings"][0]), answer["model"]
    (256, 'nomic-embed-text-v1.5')

    Raises:
        TypeError: a lone str; something that is no text; unknown keyword.
        ValueError: another argument is invalid. TextError: a text that is not valid Unicode, or
            longer than 8192 tokens with "mean".
        NomicBertError: checkpoint missing, damaged or unsupported.
    """
    from nomicbert.arguments import as_whole, refuse_unknown
    from nomicbert.runtime import hosted
    from nomicbert.runtime.inputs import as_iterator, checked
    from nomicbert.text.prompts import NOMIC_TASKS

    refuse_unknown(unknown, text, instead=INSTEAD)
    inputs: object = texts
    if isinstance(inputs, str):
        raise TypeError(f"texts must be a list of str, not a lone str: give [{inputs!r:.80}]")
    if not isinstance(model, str | os.PathLike):
        raise TypeError(f"model must be a str or a path, not {model!r:.80}")
    for name, value, known in (
        ("task_type", task_type, NOMIC_TASKS),
        ("long_text_mode", long_text_mode, MODES),
        ("inference_mode", inference_mode, INFERENCE_MODES),
    ):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, not {value!r:.80}")
    for name, number, most in (
        ("dimensionality", dimensionality, "width"),
        ("n_ctx", n_ctx, "limit"),
    ):
        if number is not None and as_whole(name, number) < 1:
            raise ValueError(f"{name} must be 1 to the model's {most}, not {number}")
    if dimensionality is not None and dimensionality < LEAST_ADVISED:
        logger.warning(
            "dimensionality %d is below %d, the least that nomic recommends",
            dimensionality, LEAST_ADVISED,
        )  # fmt: skip
    given = list(checked(as_iterator(inputs, "texts")))
    vectors: list[list[float]] = []
    usage: dict[str, int] = {}
    named = os.fspath(model)
    if given:
        embedder = _loaded(named, device)
        request = hosted.request_of(
            embedder,
            given,
            task_type=task_type,
            dimensionality=dimensionality,
            long_text_mode=cast("LongTextMode", long_text_mode),
            n_ctx=n_ctx,
        )
        stream, _ = embedder.stream(request)
        vectors, usage = hosted.lists_and_usage(stream.run(iter(given)))
    return {"embeddings": vectors, "usage": usage, "model": named, "inference_mode": "local"}


def free_embedding_model() -> None:
    """Drop all loaded models; the next call loads its model again.

    The client has this function for the model of its local mode.
    """
    _models.clear()


def _loaded(model: str, device: str | None) -> "Embedder":
    """The model of this name on this device; raises as `Embedder`."""
    from nomicbert.arguments import as_device
    from nomicbert.embedder import Embedder
    from nomicbert.loading import hub

    repository = _repository(model)
    place = as_device("auto" if device is None else DEVICES.get(device, device))
    return _models.get(
        (repository, str(place)),
        lambda: hub.resolve(repository),
        lambda folder: Embedder(folder, device=place),
    )


def _repository(model: str) -> str:
    """The folder or the id of the repository that a name stands for.

    Raises: ValueError: a model of the hosted API that cannot be loaded here.
    """
    from nomicbert.loading.known_ids import full_id

    folder = os.path.expanduser(model)
    if os.path.isdir(folder):
        return os.path.realpath(folder)
    if "/" in model:
        return model
    if model in ELSEWHERE:
        raise ValueError(
            f"model {model!r} has another architecture than BERT and NomicBERT: choose "
            "'nomic-embed-text-v1.5' or another checkpoint of docs/checkpoints.md"
        )
    return ALIASES.get(model) or full_id(model) or model


_models: "Kept[tuple[str, str], Embedder]" = Kept(MOST_MODELS)

if not TYPE_CHECKING:  # a type checker would take any name

    def __getattr__(name: str) -> object:
        if name == "image":
            raise AttributeError(f"{__name__} has no 'image': only texts are embedded here")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
