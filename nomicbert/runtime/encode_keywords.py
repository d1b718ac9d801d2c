"""The keywords of Embedder's methods that embed, as dictionaries for type checkers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal, TypedDict

import numpy as np
import numpy.typing as npt
import torch

if TYPE_CHECKING:
    from nomicbert.runtime.features import Processing
    from nomicbert.runtime.pool import WorkerPool
    from nomicbert.runtime.texts import Truncate
    from nomicbert.vectors.quantization import Precision

Inputs = str | Iterable[str]
Devices = torch.device | str | Sequence[torch.device | str] | None
OutputValue = Literal["sentence_embedding", "token_embeddings"]
TaskName = Literal["query", "document"]


class EncodeKeywords(TypedDict, total=False):
    """Keywords of `Embedder.encode` that do not decide on the type of its result."""

    prompt_name: str | None
    prompt: str | None
    matryoshka_dim: int | None
    truncate_dim: int | None
    normalize_embeddings: bool
    ranges: npt.NDArray[np.float32] | npt.NDArray[np.float64] | None
    device: Devices
    batch_size: int | None
    batch_tokens: int | None
    max_length: int | None
    truncate: Truncate
    show_progress_bar: bool | None
    pool: WorkerPool | None
    chunk_size: int | None
    processing_kwargs: Processing | None


class ChunkKeywords(TypedDict, total=False):
    """Those of `Embedder.encode_chunks`."""

    prompt_name: str | None
    prompt: str | None
    matryoshka_dim: int | None
    truncate_dim: int | None
    normalize_embeddings: bool
    max_length: int | None
    batch_tokens: int | None
    show_progress_bar: bool | None


class AllEncodeKeywords(EncodeKeywords, total=False):
    """All of them, for methods that hand them on."""

    precision: Precision | None
    convert_to_numpy: bool
    convert_to_tensor: bool
    output_value: OutputValue | None


class CallKeywords(AllEncodeKeywords, total=False):
    """All of them, and those that a stream or a file has no use for."""

    task: TaskName | None


class OneCallKeywords(EncodeKeywords, total=False):
    """Those that do not decide on the type, and the same ones."""

    task: TaskName | None


class SentencesKeywords(OneCallKeywords, total=False):
    """The same, and the old name of the texts."""

    sentences: Inputs | None
