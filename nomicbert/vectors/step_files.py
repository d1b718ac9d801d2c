"""Files of sentence-transformers' modules after pooling -> steps.

What a file states is compared with the shapes of its tensors before anything is built.
Source: the formats that sentence-transformers 2 to 6 write, and the defaults of their keys.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from nomicbert.errors import CheckpointError, ConfigError
from nomicbert.loading.folder import Module
from nomicbert.loading.json_settings import Settings, optional, read_json
from nomicbert.loading.nonfinite import not_finite, warn_not_finite
from nomicbert.loading.tensor_files import TensorFiles
from nomicbert.loading.weights import Unfilled
from nomicbert.vectors.activations import ACTIVATIONS, name_in
from nomicbert.vectors.steps import Dense, Dropout, LayerNorm, Normalize, Step

# sentence-transformers' names for the value that modules hand on.
VECTOR, SCORES = "sentence_embedding", "scores"
DENSE_KEYS = {
    "activation_function",
    "bias",
    "in_features",
    "module_input_name",
    "module_output_name",
    "out_features",
    "use_residual",
}
# Those of torch.nn.Dropout and torch.nn.LayerNorm in sentence-transformers' modules.
DROPOUT = 0.2

AnyStep = TypeVar("AnyStep", bound=Step)


class Read(NamedTuple):
    """A step, and the names of what it takes and gives."""

    step: Step
    takes: str = VECTOR
    gives: str = VECTOR


def read_steps(modules: tuple[Module, ...], width: int, dtype: torch.dtype) -> list[Read]:
    """Read the modules after pooling; each must take what the one before it gives.

    Args:
        modules: of these kinds: Dense, Dropout, LayerNorm, Normalize.
        width: columns that the first one gets.
        dtype: of the parameters.

    Raises:
        ConfigError: a setting that is damaged or not supported.
        CheckpointError: weights missing or of another shape.
    """
    found: list[Read] = []
    name, giver = VECTOR, "Pooling"
    for module in modules:
        read = READERS[module.kind](module.folder, width, dtype)
        if read.takes != name:
            raise ConfigError(
                f"{module.folder / 'config.json'}: module_input_name = {read.takes!r} is not "
                f"supported, only {name!r} is, which {giver} gives"
            )
        found.append(read)
        name, giver = read.gives, str(module.folder / "config.json")
        width = read.step.columns(width)
    return found


def _dense(folder: Path, width: int, dtype: torch.dtype) -> Read:
    s = _settings(folder, DENSE_KEYS)
    inputs, outputs = _size(s, "in_features"), _size(s, "out_features")
    _fits(s, "in_features", inputs, width)
    # sentence-transformers' default if the key is missing
    stated = str(s.get("activation_function", default="torch.nn.Tanh"))
    activation = name_in(stated)
    if activation is None:
        raise ConfigError(
            f"{s.path}: activation_function = {stated!r} is not supported; "
            f"supported are {', '.join(ACTIVATIONS)}"
        )
    bias, residual = s.flag("bias", default=True), s.flag("use_residual", default=False)
    wanted: dict[str, tuple[int, ...]] = {"linear.weight": (outputs, inputs)}
    wanted |= {"linear.bias": (outputs,)} if bias else {}
    wanted |= {"residual.weight": (outputs, inputs)} if residual and inputs != outputs else {}
    keys = ("in_features", "out_features", "bias", "use_residual")

    def build() -> Dense:
        return Dense(inputs, outputs, bias, activation, residual, dtype)

    return Read(_filled(build, folder, s, keys, wanted, dtype), *_names(s))


def _layer_norm(folder: Path, width: int, dtype: torch.dtype) -> Read:
    s = _settings(folder, {"dimension"})
    size = _size(s, "dimension")
    _fits(s, "dimension", size, width)
    wanted = {"norm.weight": (size,), "norm.bias": (size,)}
    return Read(_filled(lambda: LayerNorm(size, dtype), folder, s, ("dimension",), wanted, dtype))


def _normalize(folder: Path, width: int, dtype: torch.dtype) -> Read:
    # before sentence-transformers 5.2 there was no file; other keys are ignored there too
    return Read(Normalize(), *_names(optional(folder / "config.json")))


def _dropout(folder: Path, width: int, dtype: torch.dtype) -> Read:
    s = optional(folder / "config.json")
    share = s.number("dropout", default=DROPOUT)
    if not 0 <= share <= 1:
        raise ConfigError(f"{s.path}: dropout must be 0 to 1, not {share!r}")
    return Read(Dropout(share))


READERS: dict[str, Callable[[Path, int, torch.dtype], Read]] = {
    "Dense": _dense,
    "LayerNorm": _layer_norm,
    "Dropout": _dropout,
    "Normalize": _normalize,
}
# Kinds with parameters.
WEIGHTED = ("Dense", "LayerNorm")


def _settings(folder: Path, known: set[str]) -> Settings:
    path = folder / "config.json"
    raw = read_json(path)
    if unknown := raw.keys() - known:
        raise ConfigError(
            f"{path} has settings that are not supported: {', '.join(sorted(unknown))}"
        )
    return Settings(raw, path)


def _names(s: Settings) -> tuple[str, str]:
    takes = s.get("module_input_name", default=VECTOR)
    gives = s.get("module_output_name", default=takes)
    for key, name in (("module_input_name", takes), ("module_output_name", gives)):
        if not isinstance(name, str):
            raise ConfigError(f"{s.path}: {key} must be a name, not {name!r}")
    return takes, gives


def _size(s: Settings, key: str) -> int:
    size = s.size(key)
    if size < 1:
        raise ConfigError(f"{s.path}: {key} must be at least 1, not {size}")
    return size


def _fits(s: Settings, key: str, size: int, width: int) -> None:
    if size != width:
        raise ConfigError(
            f"{s.path}: {key} = {size}, but the module before it gives {width} columns"
        )


def _filled(
    build: Callable[[], AnyStep],
    folder: Path,
    s: Settings,
    keys: tuple[str, ...],
    wanted: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype,
) -> AnyStep:
    """Build a step and read its parameters, if the file holds exactly those of these shapes."""
    files = TensorFiles(folder)
    found = {name: files.shape(name) for name in files.names()}
    if found != wanted:
        stated = ", ".join(f"{key} = {_short(s.raw[key])}" for key in keys if key in s.raw)
        raise CheckpointError(
            f"the tensors of {folder} are {found}, wanted {dict(wanted)}: {s.path} states {stated}"
        )
    broken: dict[str, int] = {}
    # parameters made under a caller's inference_mode could never be trained
    with torch.inference_mode(False), torch.no_grad():
        with Unfilled():
            step = build()
        for name, parameter in step.named_parameters():
            tensor = files.read(name)
            if not tensor.is_floating_point() or tensor.layout != torch.strided:
                raise CheckpointError(
                    f"{name} of {folder} holds {tensor.dtype}, {tensor.layout}: only dense "
                    "floating point weights are supported"
                )
            parameter.copy_(tensor)
            broken |= not_finite(parameter, files.read, [name])
    warn_not_finite(folder, broken, dtype)
    return step


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 20 else f"{text[:20]}..."
