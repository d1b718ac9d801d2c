"""The exact types of CrossEncoder's methods, for type checkers; see `encode_types`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Literal, Protocol, TypedDict, cast, overload

import numpy as np
import numpy.typing as npt
from torch import Tensor

from nomicbert.runtime.reranker_calls import as_called, as_ranked

if TYPE_CHECKING:
    from typing_extensions import Required, Unpack

    from nomicbert.runtime.encode_types import Devices
    from nomicbert.runtime.features import Processing
    from nomicbert.runtime.pool import WorkerPool

Float32 = npt.NDArray[np.float32]
Pair = tuple[str, str]
Activation = Callable[[Tensor], Tensor]
if TYPE_CHECKING:
    # An argument of `predict` that is given by its position.
    Positional = str | int | Activation | Devices | WorkerPool | None


class RankedDocument(TypedDict, total=False):
    """A row of `CrossEncoder.rank`; `text` is there when it was asked for."""

    corpus_id: Required[int]
    score: Required[float]
    text: str


class PredictKeywords(TypedDict, total=False):
    """Keywords of `CrossEncoder.predict` that do not decide on the type of its result."""

    prompt_name: str | None
    prompt: str | None
    batch_size: int | None
    batch_tokens: int | None
    show_progress_bar: bool | None
    activation_fn: Activation | None
    apply_softmax: bool
    device: Devices
    pool: WorkerPool | None
    chunk_size: int | None
    max_length: int | None
    processing_kwargs: Processing | None


class AllPredictKeywords(PredictKeywords, total=False):
    """All of them."""

    convert_to_numpy: bool
    convert_to_tensor: bool


class OldPredictKeywords(AllPredictKeywords, total=False):
    """The same, and old names: see `reranker_calls`."""

    sentences: Required[Pair | Iterable[Pair]]
    activation_fct: Activation | None
    num_workers: int


class RankKeywords(PredictKeywords, total=False):
    """Keywords that `CrossEncoder.rank` hands on; the last four have no effect or are old."""

    convert_to_numpy: bool
    convert_to_tensor: bool
    activation_fct: Activation | None
    num_workers: int


class Predict(Protocol):
    """`CrossEncoder.predict`."""

    @overload
    def __call__(
        self,
        inputs: Pair,
        *,
        convert_to_numpy: Literal[True] = ...,
        convert_to_tensor: Literal[False] = ...,
        **keywords: Unpack[PredictKeywords],
    ) -> np.float32 | Float32: ...

    @overload
    def __call__(
        self,
        inputs: Iterable[Pair],
        *,
        convert_to_numpy: Literal[True] = ...,
        convert_to_tensor: Literal[False] = ...,
        **keywords: Unpack[PredictKeywords],
    ) -> Float32: ...

    @overload
    def __call__(
        self,
        inputs: Pair | Iterable[Pair],
        *,
        convert_to_tensor: Literal[True],
        convert_to_numpy: bool = ...,
        **keywords: Unpack[PredictKeywords],
    ) -> Tensor: ...

    @overload
    def __call__(
        self,
        inputs: Pair,
        *,
        convert_to_numpy: Literal[False],
        convert_to_tensor: Literal[False] = ...,
        **keywords: Unpack[PredictKeywords],
    ) -> Tensor: ...

    @overload
    def __call__(
        self,
        inputs: Iterable[Pair],
        *,
        convert_to_numpy: Literal[False],
        convert_to_tensor: Literal[False] = ...,
        **keywords: Unpack[PredictKeywords],
    ) -> list[Tensor]: ...

    @overload
    def __call__(
        self,
        inputs: Pair | Iterable[Pair],
        *,
        convert_to_numpy: bool = ...,
        convert_to_tensor: bool = ...,
        **keywords: Unpack[PredictKeywords],
    ) -> np.float32 | Float32 | Tensor | list[Tensor]: ...

    # Calls with old names and by position, whose result no type checker can tell.
    @overload
    def __call__(
        self, **keywords: Unpack[OldPredictKeywords]
    ) -> np.float32 | Float32 | Tensor | list[Tensor]: ...

    @overload
    def __call__(
        self, inputs: Pair | Iterable[Pair], /, *positions: Positional
    ) -> np.float32 | Float32 | Tensor | list[Tensor]: ...


class Rank(Protocol):
    """`CrossEncoder.rank`."""

    def __call__(
        self,
        query: str,
        documents: Iterable[str],
        top_k: int | None = None,
        return_documents: bool = False,
        **keywords: Unpack[RankKeywords],
    ) -> list[RankedDocument]:
        """Order documents by their score beside a query, the best first."""
        ...


def as_predict(method: Callable[..., object]) -> Predict:
    """Decorate a method that has the type of `Predict`; see `reranker_calls`."""
    return cast("Predict", as_called(method))


def as_rank(method: Callable[..., object]) -> Rank:
    """Decorate a method that has the type of `Rank`; see `reranker_calls`."""
    return cast("Rank", as_ranked(method))
