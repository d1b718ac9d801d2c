"""The configuration that a model has: an EncoderConfig with what tools of training ask of one.

A model is built from its sizes and kinds, so these are fixed: a write to them is refused. What may
be written has an effect: on the next call, or on the config.json that `save_pretrained` writes.
Source: the attributes of PretrainedConfig that Trainer and its callbacks read and write.
"""

import json
from dataclasses import FrozenInstanceError, fields
from typing import TYPE_CHECKING, ClassVar

import torch

from nomicbert.config import EncoderConfig
from nomicbert.loading.saved_config import saved_config
from nomicbert.modeling.labels import Labels, Problem, asked_names, stated_count
from nomicbert.modeling.output import Defaults

# Ids of special tokens, which Trainer takes over from a tokenizer.
TOKENS = (
    "bos_token_id",
    "cls_token_id",
    "eos_token_id",
    "mask_token_id",
    "pad_token_id",
    "sep_token_id",
    "unk_token_id",
)
# Flags that may be written: defaults of a call, and one without a meaning for an encoder.
FLAGS = ("output_hidden_states", "return_dict", "use_cache")
LABELS = ("id2label", "label2id", "num_labels", "problem_type")


class ModelConfig(EncoderConfig):
    """The configuration of a model, its own copy.

    Attributes: those of `EncoderConfig`; those of `Labels` under transformers' names; keys of
    config.json. May be written: ids of special tokens, flags of the output, and labels, whose
    number stays. Without a padding row, pad_token_id = None, inputs are padded with 0: that is the
    attribute then, while config.json has null.
    """

    # of the output, as in transformers: no encoder here returns it
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]

    @classmethod
    def of(cls, config: EncoderConfig) -> "ModelConfig":
        """A copy of a configuration."""
        return cls(**{field.name: getattr(config, field.name) for field in fields(config)})

    def __eq__(self, other: object) -> bool:
        """Whether all settings are equal, also those of a plain EncoderConfig."""
        if not isinstance(other, EncoderConfig):
            return NotImplemented
        return all(getattr(self, f.name) == getattr(other, f.name) for f in fields(self))

    # it can be written; a frozen dataclass, its base, can be hashed
    __hash__ = None  # type: ignore[assignment]

    def __setattr__(self, name: str, value: object) -> None:
        """Write one of the few settings that a model does not depend on.

        Raises: FrozenInstanceError (an AttributeError): any other. TypeError, ValueError: a value
            that it cannot have.
        """
        if name in LABELS:
            self.write(**_with_labels(self.labels, stated_count(self.source), name, value))
        elif name in FLAGS:
            if not isinstance(value, bool | None):
                raise TypeError(f"{name} must be True, False or None, not {value!r:.80}")
            older = {"use_return_dict": None} if name == "return_dict" else {}
            self.write(**{name: value}, **older)
        elif name in TOKENS:
            if isinstance(value, bool) or not isinstance(value, int | None):
                raise TypeError(f"{name} must be a token id or None, not {value!r:.80}")
            if value is not None and not 0 <= value < self.vocab_size:
                raise ValueError(f"{name} must be 0 to {self.vocab_size - 1}, not {value}")
            self.write(**{name: value})
            if name == "pad_token_id":  # what pads: as read from a config.json with null, 0
                object.__setattr__(self, name, value or EncoderConfig.pad_token_id)
        else:
            raise FrozenInstanceError(
                f"the configuration of a model is fixed, {name} with it: give it to "
                "from_pretrained, or as config=dataclasses.replace(model.config, ...). May be "
                f"written: {', '.join((*FLAGS, *LABELS, *TOKENS))}"
            )

    def write(self, **settings: object) -> None:
        """Replace keys of `source`, which `save_pretrained` writes."""
        object.__setattr__(self, "source", {**self.source, **settings})

    @property
    def labels(self) -> Labels:
        """The labels that config.json states."""
        return Labels.read(self.source)

    @property
    def id2label(self) -> dict[int, str]:
        """Number -> name of each label."""
        return dict(enumerate(self.labels.names))

    @property
    def label2id(self) -> dict[str, int]:
        """Name -> number of each label."""
        return {name: i for i, name in enumerate(self.labels.names)}

    @property
    def num_labels(self) -> int:
        """Number of labels, 2 if none are stated."""
        return len(self.labels.names)

    @property
    def problem_type(self) -> Problem | None:
        """What the labels mean; None: those of each call decide."""
        return self.labels.problem_type

    @property
    def use_cache(self) -> bool:
        """As written, or as config.json has it; an encoder has no cache."""
        return bool(self.source.get("use_cache"))

    @property
    def output_hidden_states(self) -> bool:
        """Whether a call that does not say returns the hidden states."""
        return Defaults.read(self.source).output_hidden_states

    @property
    def return_dict(self) -> bool:
        """Whether a call that does not say returns an output with names."""
        return Defaults.read(self.source).return_dict

    if not TYPE_CHECKING:  # a checker shall find misspelt names

        def __getattr__(self, name: str) -> object:
            """A key of config.json."""
            source = vars(self).get("source", {})
            if name in source and not name.startswith("__"):
                return source[name]
            raise AttributeError(f"{type(self).__name__} has no setting {name!r}")

    def get_text_config(
        self, decoder: bool | None = None, encoder: bool | None = None
    ) -> "ModelConfig":
        """Itself: there is no other part, whatever is asked for."""
        return self

    def to_dict(self) -> dict[str, object]:
        """The settings that `save_pretrained` writes, architectures and dtype as loaded."""
        kept = {key: self.source[key] for key in ("architectures", "dtype") if key in self.source}
        return {**saved_config(self, torch.float32), **kept}

    def to_json_string(self, use_diff: bool = True) -> str:
        """The same as JSON; `use_diff` has no effect: all settings are there."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"


def _with_labels(old: Labels, count: int | None, name: str, value: object) -> dict[str, object]:
    """Keys of config.json for other labels.

    Args:
        old: the labels so far.
        count: their number if it is stated, which stays; None if it is not.
        name: the attribute that is written.
        value: its new value.

    Raises: TypeError, ValueError: no such labels, or another number of them.
    """
    if name == "problem_type":
        if not isinstance(value, str | None):
            raise TypeError(f"problem_type must be a string or None, not {value!r:.80}")
        return old.meant_as(value).as_config()
    if name == "num_labels":
        new = old.counting(value if isinstance(value, int) else -1)
    else:
        given = {"id2label": None, "label2id": None, name: value}
        new = old.named(asked_names(None, **given))  # type: ignore[arg-type]
    if count not in (None, len(new.names)):
        raise ValueError(
            f"the model has {count} labels, not {len(new.names)}: give {name} to from_pretrained"
        )
    return new.as_config()
