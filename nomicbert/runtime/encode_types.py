"""The exact types of Embedder's methods, for type checkers.

What `encode` returns depends on its arguments: each Protocol lists the combinations. At run time
the methods are the plain functions that `as_encode` and the others decorate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal, Protocol, cast, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nomicbert.arguments import checks_keywords
from nomicbert.runtime.encode_keywords import Devices as Devices  # also CrossEncoder's
from nomicbert.runtime.encode_keywords import Inputs, OutputValue
from nomicbert.runtime.positions import takes_positions

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from nomicbert.runtime.encode_keywords import (
        CallKeywords,
        EncodeKeywords,
        OneCallKeywords,
        SentencesKeywords,
    )
    from nomicbert.runtime.features import TextOutputs
    from nomicbert.runtime.pool import WorkerPool
    from nomicbert.vectors.quantization import Precision

    # An argument of `encode` that is given by its position.
    Positional = str | int | None | torch.device | Sequence[torch.device | str] | WorkerPool

Float32 = npt.NDArray[np.float32]
Vectors = Float32 | npt.NDArray[np.float16] | npt.NDArray[np.int8] | npt.NDArray[np.uint8]


class Encode(Protocol):
    """`Embedder.encode`, `encode_query` and `encode_document`."""

    @overload
    def __call__(
        self,
        inputs: Inputs | None = None,
        *,
        precision: Literal["float32"] | None = ...,
        convert_to_numpy: Literal[True] = ...,
        convert_to_tensor: Literal[False] = ...,
        output_value: Literal["sentence_embedding"] = ...,
        **keywords: Unpack[SentencesKeywords],
    ) -> Float32: ...

    @overload
    def __call__(
        self,
        inputs: Inputs | None = None,
        *,
        precision: Precision,
        convert_to_numpy: Literal[True] = ...,
        convert_to_tensor: Literal[False] = ...,
        output_value: Literal["sentence_embedding"] = ...,
        **keywords: Unpack[SentencesKeywords],
    ) -> Vectors: ...

    @overload
    def __call__(
        self,
        inputs: Inputs | None = None,
        *,
        convert_to_tensor: Literal[True],
        precision: Precision | None = ...,
        convert_to_numpy: bool = ...,
        output_value: Literal["sentence_embedding"] = ...,
        **keywords: Unpack[SentencesKeywords],
    ) -> Tensor: ...

    @overload
    def __call__(  # type: ignore[overload-overlap]
        self,
        inputs: str,
        *,
        convert_to_numpy: Literal[False],
        precision: Precision | None = ...,
        convert_to_tensor: Literal[False] = ...,
        output_value: Literal["sentence_embedding"] = ...,
        **keywords: Unpack[OneCallKeywords],
    ) -> Tensor: ...

    @overload
    def __call__(
        self,
        inputs: Iterable[str],
        *,
        convert_to_numpy: Literal[False],
        precision: Precision | None = ...,
        convert_to_tensor: Literal[False] = ...,
        output_value: Literal["sentence_embedding"] = ...,
        **keywords: Unpack[OneCallKeywords],
    ) -> list[Tensor]: ...

    @overload
    def __call__(  # type: ignore[overload-overlap]
        self,
        inputs: str,
        *,
        output_value: Literal["token_embeddings"],
        precision: Literal["float32"] | None = ...,
        convert_to_numpy: bool = ...,
        convert_to_tensor: bool = ...,
        **keywords: Unpack[OneCallKeywords],
    ) -> Tensor: ...

    @overload
    def __call__(
        self,
        inputs: Iterable[str],
        *,
        output_value: Literal["token_embeddings"],
        precision: Literal["float32"] | None = ...,
        convert_to_numpy: bool = ...,
        convert_to_tensor: bool = ...,
        **keywords: Unpack[OneCallKeywords],
    ) -> list[Tensor]: ...

    @overload
    def __call__(  # type: ignore[overload-overlap]
        self,
        inputs: str,
        *,
        output_value: None,
        precision: Literal["float32"] | None = ...,
        convert_to_numpy: bool = ...,
        convert_to_tensor: bool = ...,
        **keywords: Unpack[OneCallKeywords],
    ) -> TextOutputs: ...

    @overload
    def __call__(
        self,
        inputs: Iterable[str],
        *,
        output_value: None,
        precision: Literal["float32"] | None = ...,
        convert_to_numpy: bool = ...,
        convert_to_tensor: bool = ...,
        **keywords: Unpack[OneCallKeywords],
    ) -> list[TextOutputs]: ...

    @overload
    def __call__(
        self,
        inputs: Inputs | None = None,
        *,
        precision: Precision | None = ...,
        convert_to_numpy: bool = ...,
        convert_to_tensor: bool = ...,
        output_value: OutputValue = ...,
        **keywords: Unpack[SentencesKeywords],
    ) -> Vectors | Tensor | list[Tensor]: ...

    @overload
    def __call__(
        self,
        inputs: Inputs | None = None,
        *,
        precision: Precision | None = ...,
        convert_to_numpy: bool = ...,
        convert_to_tensor: bool = ...,
        output_value: OutputValue | None = ...,
        **keywords: Unpack[SentencesKeywords],
    ) -> Vectors | Tensor | list[Tensor] | TextOutputs | list[TextOutputs]: ...

    # by position: what sentence-transformers has there, or had before 2.4 (a batch size)
    @overload
    def __call__(
        self,
        inputs: Inputs,
        second: str | int | None,
        /,
        *,
        precision: Literal["float32"] | None = ...,
        convert_to_numpy: Literal[True] = ...,
        convert_to_tensor: Literal[False] = ...,
        output_value: Literal["sentence_embedding"] = ...,
        **keywords: Unpack[OneCallKeywords],
    ) -> Float32: ...

    @overload
    def __call__(
        self,
        inputs: Inputs,
        second: str | int | None,
        /,
        *more: Positional,
        **keywords: Unpack[CallKeywords],
    ) -> Vectors | Tensor | list[Tensor] | TextOutputs | list[TextOutputs]: ...


class EncodeIter(Protocol):
    """`Embedder.encode_iter`."""

    @overload
    def __call__(
        self,
        inputs: Iterable[str],
        *,
        precision: Literal["float32"] | None = ...,
        convert_to_numpy: Literal[True] = ...,
        convert_to_tensor: Literal[False] = ...,
        output_value: Literal["sentence_embedding"] = ...,
        **keywords: Unpack[EncodeKeywords],
    ) -> Iterator[Float32]: ...

    @overload
    def __call__(
        self,
        inputs: Iterable[str],
        *,
        precision: Precision,
        convert_to_numpy: Literal[True] = ...,
        convert_to_tensor: Literal[False] = ...,
        output_value: Literal["sentence_embedding"] = ...,
        **keywords: Unpack[EncodeKeywords],
    ) -> Iterator[Vectors]: ...

    @overload
    def __call__(
        self,
        inputs: Iterable[str],
        *,
        precision: Precision | None = ...,
        convert_to_numpy: bool = ...,
        convert_to_tensor: bool = ...,
        output_value: OutputValue = ...,
        **keywords: Unpack[EncodeKeywords],
    ) -> Iterator[Vectors | Tensor]: ...


class TokenCount(Protocol):
    """`Embedder.token_count`."""

    @overload
    def __call__(self, inputs: str, prompt_name: str | None = None) -> int: ...  # type: ignore[overload-overlap]

    @overload
    def __call__(self, inputs: Iterable[str], prompt_name: str | None = None) -> list[int]: ...


def as_encode(method: Callable[..., object]) -> Encode:
    """Decorate a method that has the type of `Encode`; it takes arguments by position too."""
    return cast("Encode", takes_positions(checks_keywords(method)))


def as_encode_iter(method: Callable[..., object]) -> EncodeIter:
    """The same for `EncodeIter`."""
    return cast("EncodeIter", checks_keywords(method))


def as_token_count(method: Callable[..., object]) -> TokenCount:
    """The same for `TokenCount`."""
    return cast("TokenCount", checks_keywords(method))
