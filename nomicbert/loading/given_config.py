"""The configuration of an encoder: config.json of its folder, or what the caller gives instead."""

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Protocol, runtime_checkable

from nomicbert.config import EncoderConfig
from nomicbert.errors import ConfigError
from nomicbert.loading.hub_config import read_config
from nomicbert.loading.json_settings import present, read_json
from nomicbert.loading.tensor_files import SAFE


@runtime_checkable
class HasSettings(Protocol):
    """A configuration of transformers."""

    def to_dict(self) -> dict[str, object]:
        """What it would write into config.json."""
        ...


GivenConfig = EncoderConfig | HasSettings | Mapping[str, object] | str | os.PathLike[str]


def chosen_config(
    given: GivenConfig | None, folder: Path | None, rotary_scaling_factor: float | None = None
) -> EncoderConfig:
    """The configuration that the caller gives, or that of the folder.

    Args:
        given: an EncoderConfig, a configuration of transformers, the settings of a config.json, or
            the path of one or of its folder; None reads the folder's.
        folder: of the checkpoint; None only with `given`.
        rotary_scaling_factor: as for `read_config`.

    Raises: TypeError: nothing of that. ConfigError: as `read_config`.
    """
    if given is None:
        assert folder is not None, "the caller has refused that"
        if present(folder / SAFE) and not present(folder / "config.json"):
            raise ConfigError(
                f"{folder / 'config.json'} is missing, though weights are there. transformers' "
                "Trainer saves only those of a model like this one: give config, the folder or "
                "the configuration of the model that was trained"
            )
        return read_config(folder, rotary_scaling_factor)
    if isinstance(given, EncoderConfig):
        return _scaled(given, rotary_scaling_factor)
    if isinstance(given, str | os.PathLike):
        path = Path(given)
        if path.is_file():
            return read_config(path.parent, rotary_scaling_factor, read_json(path))
        return read_config(path, rotary_scaling_factor)
    if isinstance(given, HasSettings):
        given = given.to_dict()
    if not isinstance(given, Mapping):
        raise TypeError(
            "config must be an EncoderConfig, a configuration of transformers, a dict, or the path "
            f"of a config.json or of its folder, not {type(given).__name__}"
        )
    try:
        # as it would be read from the file: keys are strings, tuples are lists
        raw = json.loads(json.dumps(dict(given)))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"config cannot be written as JSON: {error}") from error
    return read_config(Path("config"), rotary_scaling_factor, raw)


def _scaled(config: EncoderConfig, factor: float | None) -> EncoderConfig:
    """With another alpha of dynamic NTK scaling; 0: off, None: as it is."""
    if factor is None:
        return config
    if factor and not config.rotary_dim:
        raise ConfigError(f"a {config.model_type} checkpoint has no rotary_scaling_factor")
    return replace(config, rotary_scaling_factor=float(factor) or None)


def with_dropout(
    config: EncoderConfig, hidden: float | None, attention: float | None
) -> EncoderConfig:
    """The configuration with other probabilities of dropout; None leaves one as it is.

    Args:
        config: of the encoder.
        hidden: hidden_dropout_prob.
        attention: attention_probs_dropout_prob.

    Raises: TypeError: not a number. ConfigError: not from 0 to 1.
    """
    given = {"hidden_dropout_prob": hidden, "attention_probs_dropout_prob": attention}
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int | float | None):
            raise TypeError(f"{name} must be a number from 0 to 1, not {value!r:.80}")
    if hidden is not None:
        config = replace(config, hidden_dropout_prob=float(hidden))
    if attention is not None:
        config = replace(config, attention_probs_dropout_prob=float(attention))
    return config
