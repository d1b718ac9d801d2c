"""Nomic's hosted call: the rules that `nomicbert.embed.text` and the server's route share.

Where in the flow: the arguments of a call -> prompt, width and limits, which `encode` and the
server's engine are given. Afterwards both apply the recipe for shorter vectors, at full width too.

Source: the Python client nomic 3.9; for windows and widths `LLamaModel::embedInternal` of
nomic-ai/gpt4all, which follows the hosted API.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from torch import Tensor

from nomicbert.errors import TextError
from nomicbert.runtime.request import Request
from nomicbert.runtime.settings import EmbedderSettings
from nomicbert.runtime.stream import Window
from nomicbert.runtime.texts import Truncate
from nomicbert.text.max_length import check_limit
from nomicbert.text.prompts import DOCUMENT_NAMES, NOMIC_TASKS, QUERY_NAMES
from nomicbert.text.tokenizer import Tokenizer

LongTextMode = Literal["truncate", "mean"]

# With "mean", the tokens of a text by default: the hosted API's.
MOST_TOKENS = 8192
SEARCH_QUERY, SEARCH_DOCUMENT = "search_query", "search_document"


def task_prompt_name(prompts: Mapping[str, str], task: str) -> str | None:
    """The name of the prompt for one of nomic's task types; None for no prompt.

    A checkpoint with other names for queries and documents gets those, as `encode_query` and
    `encode_document` do; one without any prompts gets none.

    Args:
        prompts: the checkpoint's, by name.
        task: a task type. One that the checkpoint has no prompt for is returned, for the error.
    """
    if task in prompts or task not in NOMIC_TASKS:
        return task
    others = {SEARCH_QUERY: QUERY_NAMES, SEARCH_DOCUMENT: DOCUMENT_NAMES}.get(task)
    if others is not None:
        return next((name for name in others if name in prompts), None)
    return task if any(prompts.values()) else None


def width(settings: EmbedderSettings, dimensionality: int | None) -> int:
    """Without `dimensionality`, the recipe over the whole width: v1.5's layer_norm is applied."""
    return settings.get_embedding_dimension() if dimensionality is None else dimensionality


def max_length(
    settings: EmbedderSettings, truncate: Truncate, prompt: str, limit: int | None = None
) -> int:
    """Tokens per text or window, prompt and special tokens included.

    With "mean", windows are no longer than the texts that the checkpoint was trained on.

    Args:
        settings: of the checkpoint.
        truncate: treatment of longer texts.
        prompt: put before every text.
        limit: `max_tokens_per_text`, which leaves out prompt and special tokens.
    """
    most = settings.max_seq_length
    if truncate == "mean":
        trained = settings.embedding_model.encoder.config.max_trained_positions
        return min(most, trained or most)
    if limit is None:
        return most
    return min(most, limit + settings.tokenizer.count([prompt])[0])


def first_longer(tokenizer: Tokenizer, texts: Sequence[str], most: int) -> tuple[int, int] | None:
    """Index and tokens of the first text of more than `most` tokens, without special ones."""
    special = len(tokenizer.prefix) + len(tokenizer.suffix)
    for index, count in enumerate(tokenizer.count(texts)):
        if count - special > most:
            return index, count - special
    return None


def request_of(
    settings: EmbedderSettings,
    texts: Sequence[str],
    *,
    task_type: str,
    dimensionality: int | None,
    long_text_mode: LongTextMode,
    n_ctx: int | None,
) -> Request:
    """The request to `encode` that a call of `nomicbert.embed.text` stands for.

    Args:
        settings: of the checkpoint.
        texts: all texts of the call, checked.
        task_type: of the call, as all others; checked as far as that needs no model.
        dimensionality: width, or None for all columns.
        long_text_mode: treatment of longer texts.
        n_ctx: maximum tokens per text or window, or None for the checkpoint's.

    Raises: ValueError: the argument does not fit the checkpoint. TextError: a text is too long.
    """
    columns = width(settings, dimensionality)
    full = settings.embedding_model.pooling.embedding_dimension
    if columns > full:
        raise ValueError(f"dimensionality must be 1 to {full}, not {columns}")
    name = task_prompt_name(settings.prompts, task_type)
    try:
        prompt = "" if name is None else settings.prompt_text(name)
    except ValueError as error:
        raise ValueError(str(error).replace("prompt_name", "task_type")) from error
    truncate: Truncate = "mean" if long_text_mode == "mean" else "end"
    limit = max_length(settings, truncate, prompt)
    tokenizer = settings.tokenizer
    if n_ctx is not None:
        config = settings.embedding_model.encoder.config
        limit = check_limit(min(limit, n_ctx), tokenizer.shortest, config, "n_ctx")
    if truncate == "mean" and (found := first_longer(tokenizer, texts, MOST_TOKENS)) is not None:
        index, tokens = found
        raise TextError(
            index,
            f"has {tokens} tokens, and long_text_mode 'mean' takes {MOST_TOKENS} at most: shorten "
            "it, or call Embedder.encode with truncate='mean'",
        )
    return Request(prompt=prompt, matryoshka_dim=columns, max_length=limit, truncate=truncate)


def lists_and_usage(windows: Iterable[Window]) -> tuple[list[list[float]], dict[str, int]]:
    """The vectors of a stream as lists, and the counts that the server's `usage` has."""
    vectors: list[list[float]] = []
    tokens = cut = 0
    for window in windows:
        assert isinstance(window.rows, Tensor)
        vectors += window.rows.tolist()
        tokens += sum(window.lengths)
        cut += len(window.cut)
    return vectors, {"prompt_tokens": tokens, "total_tokens": tokens, "truncated_texts": cut}
