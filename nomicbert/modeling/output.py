"""Outputs of the models, readable by attribute, key and index, as in transformers."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, NoReturn, TypeVar, overload

from torch import Tensor
from torch.utils._pytree import register_pytree_node

from nomicbert.errors import ConfigError

Value = Tensor | tuple[Tensor, ...]
Self = TypeVar("Self", bound="Output")


@dataclass(frozen=True)
class Defaults:
    """What a call returns if its arguments do not say: keys of config.json, as in transformers.

    Attributes:
        output_hidden_states: also the hidden states.
        return_dict: an output with names; False: a plain tuple.
    """

    output_hidden_states: bool = False
    return_dict: bool = True

    @classmethod
    def read(cls, source: Mapping[str, Any]) -> "Defaults":
        """From config.json, where null counts as absent.

        Raises: ConfigError: a value that is not true, false or null; two that differ.
        """
        named = ("return_dict", "use_return_dict")
        stated = {name: source[name] for name in named if source.get(name) is not None}
        hidden = source.get("output_hidden_states") or False
        for name, value in (stated | {"output_hidden_states": hidden}).items():
            if not isinstance(value, bool):
                raise ConfigError(f"{name} in config.json must be true or false, not {value!r}")
        if len(set(stated.values())) > 1:
            raise ConfigError(f"config.json contradicts itself: {stated}. Correct one of them.")
        return cls(hidden, next(iter(stated.values()), True))

    def asked(
        self, attentions: bool | None, hidden_states: bool | None, return_dict: bool | None
    ) -> "Defaults":
        """What a call returns whose arguments may be None.

        Raises: TypeError: not a bool. ValueError: attention maps, which no op returns.
        """
        if attentions is None and hidden_states is None and return_dict is None:
            return self
        given = {"output_hidden_states": hidden_states, "return_dict": return_dict}
        for name, value in ({"output_attentions": attentions} | given).items():
            if not isinstance(value, bool | None):
                raise TypeError(f"{name} must be True, False or None, not {value!r}")
        if attentions:
            raise ValueError("output_attentions is not supported: the ops return no attention maps")
        return replace(self, **{name: value for name, value in given.items() if value is not None})


class Output(dict[str, Value]):
    """A dataclass of tensors, and a dict of those fields that are not None (not requested).

    A dict as in transformers: Trainer and accelerate ask. It cannot be changed.
    """

    def __init_subclass__(cls) -> None:
        """Let torch's tree functions see the tensors, as DistributedDataParallel does."""
        register_pytree_node(
            cls,
            lambda output: (list(output.values()), list(output)),
            lambda values, names: cls._rebuilt(names or (), values),
            serialized_type_name=f"{cls.__module__}.{cls.__qualname__}",
        )

    def __post_init__(self) -> None:
        """Fill the dict.

        accelerate and DataParallel rebuild an output from one mapping, or from pairs of names and
        values, which come as the first field.
        """
        names = [field.name for field in fields(self)]  # type: ignore[arg-type]
        given: object = getattr(self, names[0])
        if isinstance(given, Mapping | Iterator):
            pairs = dict(given)
            if unknown := pairs.keys() - set(names):
                raise TypeError(f"{type(self).__name__} has no field {min(map(str, unknown))!r}")
            for name in names:
                object.__setattr__(self, name, pairs.get(name))
        for name in names:
            value = getattr(self, name)
            if value is not None:
                super().__setitem__(name, value)

    @classmethod
    def _rebuilt(cls: type[Self], names: Iterable[str], values: Iterable[Any]) -> Self:
        """An output with these keys, whatever their values: trees may hold shapes or None."""
        output, given = cls.__new__(cls), dict(zip(names, values, strict=True))
        for field in fields(cls):  # type: ignore[arg-type]
            object.__setattr__(output, field.name, given.get(field.name))
        for name, value in given.items():
            dict.__setitem__(output, name, value)
        return output

    def to_tuple(self) -> tuple[Value, ...]:
        """The fields that are not None, in the order of the attributes."""
        return tuple(self.values())

    @overload
    def __getitem__(self, key: Literal[0]) -> Tensor: ...

    @overload
    def __getitem__(self, key: str | int) -> Value: ...

    @overload
    def __getitem__(self, key: slice) -> tuple[Value, ...]: ...

    def __getitem__(self, key: str | int | slice) -> Value | tuple[Value, ...]:
        """By name, or by index among the fields that are not None."""
        if isinstance(key, str):
            return super().__getitem__(key)
        return self.to_tuple()[key]

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle and copy keys and values."""
        return self._rebuilt, (list(self), list(self.values()))

    def _fixed(self, *arguments: object, **keywords: object) -> NoReturn:
        """Refuse a change, which would leave attribute and key in disagreement."""
        raise TypeError(
            f"a {type(self).__name__} cannot be changed: make another one with "
            "dataclasses.replace(output, name=value)"
        )

    __setitem__ = __delitem__ = __ior__ = _fixed
    pop = popitem = clear = update = setdefault = _fixed


@dataclass(frozen=True, eq=False)
class EncoderOutput(Output):
    """Output of `NomicBert.forward`.

    Attributes:
        last_hidden_state: (batch, seq_len, hidden_size); zeros where attention_mask is 0.
        pooler_output: (batch, hidden_size) of a model with a pooling layer, or None.
        hidden_states: the embeddings' output and each layer's, or None.
    """

    last_hidden_state: Tensor
    pooler_output: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None


@dataclass(frozen=True, eq=False)
class LogitsOutput(Output):
    """Output of a head that gives one row of logits per text or per token.

    Attributes:
        loss: () fp32, or None without labels.
        logits: (batch, num_labels), or (batch, seq_len, num_labels or vocab_size) with zeros where
            attention_mask is 0.
        hidden_states: the embeddings' output and each layer's, or None.
    """

    loss: Tensor | None = None
    logits: Tensor = None  # type: ignore[assignment]
    hidden_states: tuple[Tensor, ...] | None = None


@dataclass(frozen=True, eq=False)
class SpanOutput(Output):
    """Output of the head for question answering.

    Attributes:
        loss: () fp32, or None without positions.
        start_logits: (batch, seq_len), of the first token of an answer; the dtype's lowest value
            where attention_mask is 0, so that no answer starts there.
        end_logits: the same for the last token.
        hidden_states: the embeddings' output and each layer's, or None.
    """

    loss: Tensor | None = None
    start_logits: Tensor = None  # type: ignore[assignment]
    end_logits: Tensor = None  # type: ignore[assignment]
    hidden_states: tuple[Tensor, ...] | None = None
