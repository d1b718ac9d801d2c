"""What the loaded models accept, for the schemas of GET /openapi.json.

Where in the flow: `openapi` makes the Facts of a service; its parts narrow their schemas by them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from nomicbert.runtime import hosted
from nomicbert.serve.scorers import ServedClassifier, ServedReranker, ServedScorer
from nomicbert.serve.served import ServedEmbedder, ServedModel
from nomicbert.serve.service import Service
from nomicbert.text.prompts import DOCUMENT_NAMES, NOMIC_TASKS, QUERY_NAMES

Value = TypeVar("Value")


@dataclass(frozen=True)
class Accepted:
    """What some models accept; None where it is not known, or differs between them.

    Attributes:
        names: of these models, if others are refused.
        prompts: names of prompts.
        tasks: nomic's task types, and names of prompts, that routes with task types accept.
        width: columns of a whole vector.
        shortest: the smallest limit of tokens per text, or pair.
        longest: the largest one.
        vocabulary: number of token ids.
        cuts_start: whether texts that are too long lose their beginning, not their end.
    """

    names: Sequence[str] | None = None
    prompts: Sequence[str] | None = None
    tasks: Sequence[str] | None = None
    width: int | None = None
    shortest: int | None = None
    longest: int | None = None
    vocabulary: int | None = None
    cuts_start: bool | None = None


@dataclass(frozen=True)
class Facts:
    """What the models accept that the routes choose from.

    Attributes:
        needs_name: whether OpenAI's and ollama's routes refuse a request that names no model.
        first: the first model, whatever it is: of /tokenize and /decode.
        embedder: the first embedding model.
        embedders: all embedding models.
        reranker: the first reranker.
        rerankers: all rerankers, which have one label.
        classifier: the model of /predict.
    """

    needs_name: bool = False
    first: Accepted = Accepted()
    embedder: Accepted = Accepted()
    embedders: Accepted = Accepted()
    reranker: Accepted = Accepted()
    rerankers: Accepted = Accepted()
    classifier: Accepted = Accepted()


def facts_of(service: Service) -> Facts:
    """The facts of a server; little is known while the models are being loaded."""
    any_name = service.settings.any_model_name
    if service.loaded is None:
        return Facts(not any_name)
    models = service.loaded.models

    def accepted(group: Sequence[ServedModel]) -> Accepted:
        own = {model.index for model in group}
        names = [name for name, index in service.names.by_name.items() if index in own]
        return _accepted(group, None if any_name or not group else names)

    embedders = [model for model in models if isinstance(model, ServedEmbedder)]
    rerankers = [model for model in models if isinstance(model, ServedReranker)]
    classifiers = [model for model in models if isinstance(model, ServedClassifier)]
    return Facts(
        not any_name,
        first=accepted(models[:1]),
        embedder=accepted(embedders[:1]),
        embedders=accepted(embedders),
        reranker=accepted(rerankers[:1]),
        rerankers=accepted(rerankers),
        classifier=accepted((classifiers or rerankers)[:1]),
    )


def _accepted(models: Sequence[ServedModel], names: Sequence[str] | None) -> Accepted:
    embedders = [model for model in models if isinstance(model, ServedEmbedder)]
    return Accepted(
        names=names,
        prompts=_common(map(_prompts, models)),
        tasks=_common(map(_tasks, embedders)),
        width=_common(model.width for model in embedders),
        shortest=_common(map(_shortest, models)),
        longest=_common(model.max_length for model in models),
        vocabulary=_common(model.encoder.config.vocab_size for model in models),
        cuts_start=_common(model.tokenizer.cuts_start for model in models),
    )


def _common(values: Iterable[Value]) -> Value | None:
    """The value that all have."""
    found = [*values]
    return found[0] if found and all(value == found[0] for value in found) else None


def _shortest(model: ServedModel) -> int:
    return model.shortest if isinstance(model, ServedScorer) else model.tokenizer.shortest


def _prompts(model: ServedModel) -> list[str]:
    """Names of prompts, also those that stand for none."""
    names = {*model.facade.prompts, *QUERY_NAMES, *DOCUMENT_NAMES}
    return sorted(name for name in names if _has_prompt(model, name))


def _tasks(model: ServedEmbedder) -> list[str]:
    """By the rule of `fields.task_prompt`."""
    prompts = model.embedder.prompts
    found = []
    for task in dict.fromkeys((*NOMIC_TASKS, *_prompts(model))):
        name = hosted.task_prompt_name(prompts, task)
        if name is None or _has_prompt(model, name):
            found.append(task)
    return found


def _has_prompt(model: ServedModel, name: str) -> bool:
    try:
        model.prompt_text(name)
    except ValueError:
        return False
    return True
