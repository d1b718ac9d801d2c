"""Tensors of a checkpoint -> the parameters of a model, and back.

Reading is strict: each tensor of the encoder is used exactly once and has the right shape, or a
CheckpointError lists every mismatch. No layer is left randomly initialised.
"""

import logging
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from nomicbert.config import EncoderConfig
from nomicbert.errors import CheckpointError, ConfigError
from nomicbert.loading.mapped_weights import reading
from nomicbert.loading.nonfinite import not_finite, warn_not_finite
from nomicbert.loading.saved_config import saved_config
from nomicbert.loading.tensor_files import WEIGHT_FILES, TensorFiles, write
from nomicbert.loading.tensor_names import (
    DECODER_BIAS,
    DECODER_WEIGHT,
    ENCODER_PREFIX,
    IGNORED,
    PADDED,
    UNTIED_BIAS,
    Recipe,
    canonical,
    computed,
    is_untied,
    recipes,
)

logger = logging.getLogger(__name__)

# Maximum number of names that an error message lists per kind of mismatch.
LISTED = 20


class Unfilled(TorchFunctionMode):
    """Build modules without initialising their parameters, which are about to be loaded.

    Initialising on the meta device would also make torch import its compiler: seconds.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Skip the functions of `torch.nn.init`, call all others."""
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs.get("tensor", *args[:1])
        return func(*args, **kwargs)


def disk_dtype(files: TensorFiles, config: EncoderConfig) -> torch.dtype:
    """The dtype stated in config.json, else that of the first floating-point tensor.

    Raises: ConfigError: a dtype that parameters cannot have.
    """
    stated = config.source.get("dtype") or config.source.get("torch_dtype")
    dtype = getattr(torch, str(stated).removeprefix("torch."), None)
    if not isinstance(dtype, torch.dtype):
        floating = (d for n in files.names() if (d := files.read(n).dtype).is_floating_point)
        dtype = next(floating, torch.float32)
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ConfigError(
            f"{files.folder} is stored in {dtype}, which parameters cannot have: give dtype, such "
            "as torch.float32, in place of 'auto'"
        )
    return dtype


def check_layers(files: TensorFiles, config: EncoderConfig) -> None:
    """Refuse a number of layers that the file cannot hold, before any of them is built.

    Raises: CheckpointError: fewer tensors than layers.
    """
    if config.num_hidden_layers > len(files.names()):
        raise CheckpointError(
            f"the config.json of {files.folder} states {config.num_hidden_layers} layers, but "
            f"there are only {len(files.names())} tensors"
        )


def load_state(
    files: TensorFiles,
    config: EncoderConfig,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    strict: bool = True,
) -> dict[str, Tensor]:
    """Read every parameter of a model; one WeightWarning names tensors with NaN or infinity.

    Args:
        files: of a checkpoint in a hub layout.
        config: of the same checkpoint.
        shapes: our parameter names and their shapes.
        dtype: of the parameters; converted while copying, without an intermediate copy.
        device: of the parameters. On a CPU those that are on disk as here are views of the file.
        strict: False ignores tensors that no parameter uses; a missing tensor is still an error.

    Returns: our names -> parameters.
    Raises: CheckpointError: damaged file; tensors missing, unexpected, or of another shape.
    """
    wanted = list(recipes(config, list(shapes)))
    parts = {part for recipe in wanted for part in recipe.parts}
    on_disk = by_canonical_name(files, parts, is_untied(config))
    _report(config, files, on_disk, wanted, shapes, strict)
    state: dict[str, Tensor] = {}
    broken: dict[str, int] = {}
    for recipe in wanted:
        names = tuple(on_disk[part] for part in recipe.parts)
        parameter = _view(files, recipe, names, shapes[recipe.target], dtype, device)
        if parameter is None:
            parameter = torch.empty(shapes[recipe.target], dtype=dtype, device=device)
            _fill(parameter, files, recipe, names)
        broken |= not_finite(reading(parameter), files.read, names)
        state[recipe.target] = parameter
    warn_not_finite(files.folder, broken, dtype)
    return state


def _view(
    files: TensorFiles,
    recipe: Recipe,
    names: tuple[str, ...],
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device | str,
) -> Tensor | None:
    """The parameter of a recipe as a view of its file, or None if it has to be copied."""
    if torch.device(device).type != "cpu" or recipe.form == "experts_transposed":
        return None
    return files.view(names, shape, dtype)


def _fill(parameter: Tensor, files: TensorFiles, recipe: Recipe, names: tuple[str, ...]) -> None:
    """Copy the tensors of these names on disk into the parameter of a recipe."""
    for view, name in zip(recipe.views(parameter), names, strict=True):
        tensor = files.read(name)
        if not tensor.is_floating_point() or tensor.layout != torch.strided:
            raise CheckpointError(
                f"{name} of {files.folder} holds {tensor.dtype}, {tensor.layout}: "
                "only dense floating point weights are supported"
            )
        if recipe.form == "stacked" and tensor.shape[0] < view.shape[0]:
            view[tensor.shape[0] :].zero_()  # rows that pad the vocabulary
            view = view[: tensor.shape[0]]
        view.copy_(tensor.reshape(view.shape))


def by_canonical_name(
    files: TensorFiles, parts: Collection[str] = (), untied: bool = False
) -> dict[str, str]:
    """Canonical names -> names on disk.

    Raises: CheckpointError: two tensors have the same canonical name and differ. Tensors that are
        ignored and not in `parts` may differ.
    """
    on_disk: dict[str, str] = {}
    for name in computed(files.names(), untied):
        plain = canonical(name)
        twice = plain in on_disk and (plain in parts or not IGNORED.fullmatch(plain))
        if twice and not torch.equal(files.read(on_disk[plain]), files.read(name)):
            raise CheckpointError(
                f"{files.folder} holds both {on_disk[plain]} and {name}, which differ: which is "
                f"{plain}?"
            )
        on_disk[plain] = name
    return on_disk


def _report(
    config: EncoderConfig,
    files: TensorFiles,
    on_disk: Mapping[str, str],
    wanted: Iterable[Recipe],
    shapes: Mapping[str, tuple[int, ...]],
    strict: bool,
) -> None:
    """Raise an error that lists every mismatch; log the tensors that are left unread."""
    parts = {part: r.part_shape(shapes[r.target]) for r in wanted for part in r.parts}
    missing = [part for part in parts if part not in on_disk]
    wrong = []
    # the vocabulary may be stored with config.json's size or already rounded up
    unpadded = config.source.get("vocab_size")
    for part, shape in parts.items():
        if part not in on_disk:
            continue
        found = files.shape(on_disk[part])
        padded_here = part in PADDED and found == (unpadded, *shape[1:]) and found < shape
        if found != shape and not padded_here:
            wrong.append(f"{on_disk[part]} is {found}, wanted {shape}")
    left = [name for plain, name in on_disk.items() if plain not in parts]
    unexpected = [name for name in left if not IGNORED.fullmatch(canonical(name))]
    problems = [("missing", missing), ("of another shape", wrong)]
    problems += [("left over", unexpected)] if strict else []
    lines = [
        f"{len(names)} {what}: {', '.join(names[:LISTED])}{', ...' if len(names) > LISTED else ''}"
        for what, names in problems
        if names
    ]
    if lines:
        raise CheckpointError(
            f"the tensors of {files.folder} do not fit its config.json ({config.model_type}, "
            f"{config.num_hidden_layers} layers): " + "; ".join(lines)
        )
    if left:
        logger.info("%s: not needed and left unread: %s", files.folder, ", ".join(left))


def hub_tensors(config: EncoderConfig, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors on the CPU, under their names on the hub.

    Args:
        config: of the encoder.
        state: our names -> parameters.

    Raises: CheckpointError: a parameter that no layer of this package has.
    """
    tensors = {}
    for recipe in recipes(config, list(state)):
        parameter = state[recipe.target].detach().cpu()
        inside = recipe.target.startswith("encoder.")
        prefix = ENCODER_PREFIX[config.model_type] if inside else ""
        for part, view in zip(recipe.parts, recipe.views(parameter), strict=True):
            shape = recipe.part_shape(tuple(parameter.shape))
            tensor = view.reshape(shape).contiguous()
            # safetensors refuses tensors that share memory, as the parts of a fused parameter do
            tensors[prefix + part] = tensor.clone() if len(recipe.parts) > 1 else tensor
    if DECODER_WEIGHT in tensors and DECODER_BIAS in tensors:
        tensors[UNTIED_BIAS] = tensors[DECODER_BIAS].clone()
    return tensors


def save(
    folder: Path,
    config: EncoderConfig,
    state: Mapping[str, Tensor],
    extra: Mapping[str, Any],
    more: Mapping[str, Tensor],
) -> None:
    """Write config.json and model.safetensors in the hub layout.

    Args:
        folder: created if it does not exist.
        config: of the encoder.
        state: our names -> parameters.
        extra: keys that a head adds to config.json.
        more: further tensors, under their names on the hub; written in the dtype of the others.
    """
    tensors = hub_tensors(config, state)
    dtype = next(iter(tensors.values())).dtype
    tensors |= {name: tensor.to("cpu", dtype) for name, tensor in more.items()}
    for name in WEIGHT_FILES[1:]:
        if (folder / name).exists():
            logger.warning(
                "%s holds an older %s, which some loaders prefer: remove it", folder, name
            )
    write(folder, tensors, {**saved_config(config, dtype), **extra})
