"""How models are called, for type checkers: `model(...)` returns what `forward` documents.

torch declares the call of a module as taking and returning anything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol, TypedDict, overload

from torch import Tensor

from nomicbert.modeling.output import EncoderOutput, LogitsOutput, SpanOutput, Value

if TYPE_CHECKING:
    from typing_extensions import Unpack


class ModelInputs(TypedDict, total=False):
    """Keywords of `NomicBert.forward` after the mask."""

    token_type_ids: Tensor | None
    position_ids: Tensor | None
    inputs_embeds: Tensor | None
    output_attentions: bool | None
    output_hidden_states: bool | None


class LabelledInputs(ModelInputs, total=False):
    """The same for a head that takes labels."""

    labels: Tensor | None
    num_items_in_batch: Tensor | int | None


class SpanInputs(ModelInputs, total=False):
    """The same for the head for question answering."""

    start_positions: Tensor | None
    end_positions: Tensor | None


class NoKeywords(TypedDict):
    """No further keyword: a misspelt one is refused, at run time with the nearest known one."""


class EncoderCall(Protocol):
    """The call of `NomicBert`."""

    @overload
    def __call__(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        return_dict: Literal[True] | None = ...,
        **keywords: Unpack[ModelInputs],
    ) -> EncoderOutput: ...

    @overload
    def __call__(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        return_dict: Literal[False],
        **keywords: Unpack[ModelInputs],
    ) -> tuple[Value, ...]: ...

    # what a tokenizer returns, `model(**encoded)`, is a dict of tensors for a type checker
    @overload
    def __call__(self, **encoded: Tensor) -> EncoderOutput: ...

    @overload
    def __call__(
        self, *, output_hidden_states: bool | None, **encoded: Tensor
    ) -> EncoderOutput: ...


class LabelledCall(Protocol):
    """The call of a head that takes labels."""

    @overload
    def __call__(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        return_dict: Literal[True] | None = ...,
        **keywords: Unpack[LabelledInputs],
    ) -> LogitsOutput: ...

    @overload
    def __call__(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        return_dict: Literal[False],
        **keywords: Unpack[LabelledInputs],
    ) -> tuple[Value, ...]: ...

    # what a tokenizer returns, `model(**encoded)`, is a dict of tensors for a type checker
    @overload
    def __call__(self, **encoded: Tensor) -> LogitsOutput: ...

    @overload
    def __call__(self, *, output_hidden_states: bool, **encoded: Tensor) -> LogitsOutput: ...


class SpanCall(Protocol):
    """The call of the head for question answering."""

    @overload
    def __call__(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        return_dict: Literal[True] | None = ...,
        **keywords: Unpack[SpanInputs],
    ) -> SpanOutput: ...

    @overload
    def __call__(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        return_dict: Literal[False],
        **keywords: Unpack[SpanInputs],
    ) -> tuple[Value, ...]: ...

    # what a tokenizer returns, `model(**encoded)`, is a dict of tensors for a type checker
    @overload
    def __call__(self, **encoded: Tensor) -> SpanOutput: ...

    @overload
    def __call__(self, *, output_hidden_states: bool, **encoded: Tensor) -> SpanOutput: ...
