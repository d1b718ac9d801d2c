"""Values of a body that several dialects have: inputs, prompt, dimensions, treatment of long texts.

Where in the flow: a dialect's struct -> the fields of a Wanted.
"""

from collections.abc import Mapping, Sequence
from typing import TypeVar

from nomicbert.runtime import hosted
from nomicbert.serve.http.exchange import Exchange
from nomicbert.serve.http.problems import Problem, Reason
from nomicbert.serve.pairs import PairPolicy
from nomicbert.serve.served import ServedEmbedder, ServedModel
from nomicbert.serve.settings import OnLong, ServeSettings
from nomicbert.vectors.pooling import Finish

POLICIES: dict[str, OnLong] = {"error": "error", "end": "end", "chunk": "chunk", "mean": "mean"}
Policy = TypeVar("Policy", OnLong, PairPolicy)
PAIR_POLICIES: dict[str, PairPolicy] = {"error": "error", "end": "end"}

# What JSON may hold as inputs. msgspec knows one kind of list per union, so `as_inputs` looks on.
Inputs = str | list[str | int | list[int]]


def as_inputs(given: Inputs, field: str, most: int | None) -> list[str] | list[list[int]]:
    """One text, texts, the token ids of one text, or those of several.

    Args:
        given: of the body.
        field: its name, for errors.
        most: number of texts, or None for any.

    Raises: Problem: nothing, a mixture, or too many.
    """
    if isinstance(given, str):
        return [given]
    if not given:
        raise Problem(Reason.EMPTY, f"`{field}` cannot be empty", field)
    found: list[str] | list[list[int]] | None = None
    if all(isinstance(item, str) for item in given):
        found = [item for item in given if isinstance(item, str)]
    elif all(isinstance(item, int) for item in given):
        found = [[item for item in given if isinstance(item, int)]]
    elif all(isinstance(item, list) for item in given):
        found = [item for item in given if isinstance(item, list)]
    if found is None:
        raise Problem(
            Reason.INVALID,
            f"`{field}` must hold texts only, or token ids only, or lists of token ids only",
            field,
        )
    check_count(found, field, most)
    return found


def check_count(found: Sequence[object], field: str, most: int | None) -> None:
    """Refuse nothing, or more than --max-client-batch-size.

    Raises: Problem.
    """
    if not found:
        raise Problem(Reason.EMPTY, f"`{field}` cannot be empty", field)
    if most is not None and len(found) > most:
        raise Problem(
            Reason.INVALID, f"batch size {len(found)} > maximum allowed batch size {most}", field
        )


def as_finish(
    model: ServedEmbedder, dimensions: int | None, field: str, *, normalize: bool = True
) -> Finish:
    """The steps after pooling: the checkpoint's recipe for `dimensions`, and L2.

    Raises: Problem: more dimensions than the model has.
    """
    if dimensions is not None and not 1 <= dimensions <= model.width:
        raise Problem(
            Reason.INVALID, f"`{field}` must be 1 to {model.width}, not {dimensions}", field
        )
    truncate = None if dimensions is not None else model.embedder.truncate_dim
    if normalize:
        # the recipe for dimensions ends with L2
        return Finish(dimensions, truncate, normalize=dimensions is None)
    return Finish(dimensions, truncate, unnormalized=True)


def as_prompt(model: ServedModel, name: str | None, field: str) -> str:
    """The prompt of this name; without one, the server's default.

    Raises: Problem: the checkpoint has no such prompt.
    """
    if name is None:
        return model.default_prompt
    try:
        return model.prompt_text(name)
    except ValueError as error:
        raise Problem(Reason.INVALID, str(error).replace("prompt_name", field), field) from error


def task_prompt(model: ServedEmbedder, task: str, field: str) -> str:
    """The prompt of one of nomic's task types; see `hosted.task_prompt_name`.

    Raises: Problem: the checkpoint has no prompt for this task.
    """
    name = hosted.task_prompt_name(model.embedder.prompts, task)
    return "" if name is None else as_prompt(model, name, field)


def as_policy(
    exchange: Exchange, settings: ServeSettings, given: str | None, default: OnLong
) -> OnLong:
    """The treatment of long texts: the server's, the body's, the header's, or the dialect's.

    Raises: Problem: unknown.
    """
    return settings.on_long or _asked(exchange, given, POLICIES, default)


def as_pair_policy(
    exchange: Exchange, settings: ServeSettings, given: str | None, default: PairPolicy
) -> PairPolicy:
    """`as_policy` for pairs, of which there are no windows: --on-long chunk and mean do not apply.

    Raises: Problem: unknown, or for texts only.
    """
    stated = PAIR_POLICIES.get(settings.on_long or "")
    return stated or _asked(exchange, given, PAIR_POLICIES, default)


def _asked(
    exchange: Exchange, given: str | None, known: Mapping[str, Policy], default: Policy
) -> Policy:
    """What the body says, else the header, else the dialect."""
    asked = given if given is not None else exchange.headers.get("x-on-long")
    if asked is None:
        return default
    if asked not in known:
        raise Problem(
            Reason.INVALID,
            f"`on_long` must be one of {', '.join(known)} here, not {asked[:80]!r}",
            "on_long",
        )
    return known[asked]


def as_limit(model: ServedEmbedder, given: int | None, field: str) -> int:
    """Tokens per text: the request's, which may only lower the model's.

    Raises: Problem: no room for a token, or more than the model's.
    """
    if given is None:
        return model.max_length
    least = model.tokenizer.shortest
    if not least <= given <= model.max_length:
        raise Problem(
            Reason.INVALID, f"`{field}` must be {least} to {model.max_length}, not {given}", field
        )
    return given


def lowered_limit(model: ServedEmbedder, given: int | None, field: str) -> int:
    """Tokens per text: the model's, or the request's if that is less.

    Raises: Problem: no room for a token.
    """
    least = model.tokenizer.shortest
    if given is not None and given < least:
        raise Problem(Reason.INVALID, f"`{field}` must be at least {least}, not {given}", field)
    return model.max_length if given is None else min(given, model.max_length)


def refuse_ids(inputs: Sequence[str] | Sequence[list[int]], field: str) -> list[str]:
    """The texts of a route that takes no token ids.

    Raises: Problem.
    """
    texts = [item for item in inputs if isinstance(item, str)]
    if len(texts) < len(inputs):
        raise Problem(Reason.INVALID, f"`{field}` must be texts here, not token ids", field)
    return texts
