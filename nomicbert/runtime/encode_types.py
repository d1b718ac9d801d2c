"""The exact types of Embedder's methods, for type checkers.

What `encode` returns depends on its arguments: each Protocol lists the combinations. At run time
the methods are the plain functions that `as_encode` and the others decorate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal, Protocol, TypedDict, cast, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nomicbert.arguments import checks_keywords

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from nomicbert.runtime.texts import Truncate
    from nomicbert.vectors.quantization import Precision

Inputs = str | Iterable[str]
Devices = torch.device | str | Sequence[torch.device | str] | None
OutputValue = Literal["sentence_embedding", "token_embeddings"]
Float32 = npt.NDArray[np.float32]
Vectors = Float32 | npt.NDArray[np.float16] | npt.NDArray[np.int8] | npt.NDArray[np.uint8]


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


class AllEncodeKeywords(EncodeKeywords, total=False):
    """All of them, for methods that hand them on."""

    precision: Precision
    convert_to_numpy: bool
    convert_to_tensor: bool
    output_value: OutputValue


class SentencesKeywords(EncodeKeywords, total=False):
    """The same, and the old name of the texts."""

    sentences: Inputs | None


class Encode(Protocol):
    """`Embedder.encode`, `encode_query` and `encode_document`."""

    @overload
    def __call__(
        self,
        inputs: Inputs | None = None,
        *,
        precision: Literal["float32"] = ...,
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
        precision: Precision = ...,
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
        precision: Precision = ...,
        convert_to_tensor: Literal[False] = ...,
        output_value: Literal["sentence_embedding"] = ...,
        **keywords: Unpack[EncodeKeywords],
    ) -> Tensor: ...

    @overload
    def __call__(
        self,
        inputs: Iterable[str],
        *,
        convert_to_numpy: Literal[False],
        precision: Precision = ...,
        convert_to_tensor: Literal[False] = ...,
        output_value: Literal["sentence_embedding"] = ...,
        **keywords: Unpack[EncodeKeywords],
    ) -> list[Tensor]: ...

    @overload
    def __call__(  # type: ignore[overload-overlap]
        self,
        inputs: str,
        *,
        output_value: Literal["token_embeddings"],
        precision: Literal["float32"] = ...,
        convert_to_numpy: bool = ...,
        convert_to_tensor: bool = ...,
        **keywords: Unpack[EncodeKeywords],
    ) -> Tensor: ...

    @overload
    def __call__(
        self,
        inputs: Iterable[str],
        *,
        output_value: Literal["token_embeddings"],
        precision: Literal["float32"] = ...,
        convert_to_numpy: bool = ...,
        convert_to_tensor: bool = ...,
        **keywords: Unpack[EncodeKeywords],
    ) -> list[Tensor]: ...

    @overload
    def __call__(
        self,
        inputs: Inputs | None = None,
        *,
        precision: Precision = ...,
        convert_to_numpy: bool = ...,
        convert_to_tensor: bool = ...,
        output_value: OutputValue = ...,
        **keywords: Unpack[SentencesKeywords],
    ) -> Vectors | Tensor | list[Tensor]: ...


class EncodeIter(Protocol):
    """`Embedder.encode_iter`."""

    @overload
    def __call__(
        self,
        inputs: Iterable[str],
        *,
        precision: Literal["float32"] = ...,
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
        precision: Precision = ...,
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
    """Decorate a method that has the type of `Encode`; see `checks_keywords`."""
    return cast("Encode", checks_keywords(method))


def as_encode_iter(method: Callable[..., object]) -> EncodeIter:
    """The same for `EncodeIter`."""
    return cast("EncodeIter", checks_keywords(method))


def as_token_count(method: Callable[..., object]) -> TokenCount:
    """The same for `TokenCount`."""
    return cast("TokenCount", checks_keywords(method))
