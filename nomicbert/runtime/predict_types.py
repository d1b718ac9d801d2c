"""The exact types of CrossEncoder's methods, for type checkers; see `encode_types`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Literal, Protocol, TypedDict, cast, overload

import numpy as np
import numpy.typing as npt
from torch import Tensor

from nomicbert.arguments import checks_keywords

if TYPE_CHECKING:
    from typing_extensions import Required, Unpack

    from nomicbert.runtime.encode_types import Devices

Float32 = npt.NDArray[np.float32]
Pair = tuple[str, str]
Activation = Callable[[Tensor], Tensor]


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


class AllPredictKeywords(PredictKeywords, total=False):
    """All of them."""

    convert_to_numpy: bool
    convert_to_tensor: bool


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


def as_predict(method: Callable[..., object]) -> Predict:
    """Decorate a method that has the type of `Predict`; see `checks_keywords`."""
    return cast("Predict", checks_keywords(method))
