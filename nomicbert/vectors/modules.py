"""sentence-transformers modules after the encoder (1_Pooling, 2_Dense, ...) -> Pooling.

Source: the module formats that sentence-transformers 2 to 6 write.
"""

import re
from pathlib import Path

import torch
from torch import nn

from nomicbert.errors import CheckpointError, ConfigError
from nomicbert.loading.folder import CheckpointFolder
from nomicbert.loading.json_settings import Settings, read_json
from nomicbert.loading.nonfinite import not_finite, warn_not_finite
from nomicbert.loading.tensor_files import TensorFiles
from nomicbert.user_warnings import PoolingWarning, warn
from nomicbert.vectors.pooling import ACTIVATIONS, Pooling
from nomicbert_kernels import PoolMode

ORDER = re.compile(r"Transformer Pooling( Dense)*( Normalize)?")

# Keys before sentence-transformers 6: one boolean per mode.
FLAGS: dict[str, PoolMode] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}
DENSE_KEYS = {"in_features", "out_features", "bias", "activation_function"}
DENSE_NEUTRAL: dict[str, tuple[object, ...]] = {
    "module_input_name": ("sentence_embedding",),
    "module_output_name": ("sentence_embedding",),
    "use_residual": (False,),
}
# Since sentence-transformers 6: one name.
NAMES: dict[str, PoolMode] = {
    **{mode: mode for mode in FLAGS.values()},
    "mean_sqrt_len_tokens": "mean_sqrt_len",
}


def read_pooling(
    checkpoint: CheckpointFolder, dtype: torch.dtype, chosen: PoolMode | None = None
) -> Pooling:
    """Build the pooling of a checkpoint.

    Args:
        checkpoint: its settings.
        dtype: of the Dense layers.
        chosen: the mode of a checkpoint without modules.json; None is "mean".

    Raises:
        ConfigError: a module, order or option that is not supported.
        ValueError: `chosen` is not a mode, or the checkpoint states its own.
        CheckpointError: a Dense layer's weights missing or of another shape.
    """
    mode = check_chosen(checkpoint, chosen) or "mean"
    dense: list[tuple[nn.Linear, str]] = []
    normalize = False
    config = checkpoint.config
    width = config.hidden_size
    names = [module.kind for module in checkpoint.modules or ()]
    if checkpoint.modules is not None and not ORDER.fullmatch(" ".join(names)):
        raise ConfigError(
            f"{checkpoint.folder / 'modules.json'} lists {', '.join(names) or 'nothing'}: "
            "supported are Transformer, Pooling, any number of Dense, and Normalize at the end if "
            "at all"
        )
    for module in checkpoint.modules or ():
        if module.kind == "Pooling":
            mode = _read_mode(module.folder / "config.json", width)
        elif module.kind == "Dense":
            dense.append(_read_dense(module.folder, width, dtype))
            width = dense[-1][0].out_features
        elif module.kind == "Normalize":
            normalize = True
    # v1.5 and models fine-tuned from it: they were trained with layer_norm before the slice
    recipe = config.hidden_act == "swiglu" and mode == "mean" and not dense and not normalize
    return Pooling(config.hidden_size, mode, tuple(dense), normalize, recipe).eval()


def check_chosen(checkpoint: CheckpointFolder, chosen: PoolMode | None) -> PoolMode | None:
    """The mode that the caller chose, after a check that the checkpoint leaves the choice open.

    Raises: ConfigError: modules.json was lost. ValueError: see `read_pooling`.
    """
    parts = sorted(path.parent.name for path in checkpoint.folder.glob("*_Pooling/config.json"))
    if parts and checkpoint.modules is None:
        raise ConfigError(
            f"{checkpoint.folder} has {parts[0]} but no modules.json, which says how vectors are "
            "made: the copy is not complete"
        )
    if chosen is None:
        return None
    if chosen not in FLAGS.values():
        known = ", ".join(FLAGS.values())
        raise ValueError(f"pooling must be one of {known}, not {chosen!r}")
    if checkpoint.modules is not None:
        raise ValueError(
            f"{checkpoint.folder / 'modules.json'} states the pooling: leave out pooling="
        )
    return chosen


def warn_of_assumption(checkpoint: CheckpointFolder, chosen: PoolMode | None) -> None:
    """Warn if nobody said how to pool: neither modules.json nor the caller."""
    if checkpoint.modules is None and chosen is None:
        warn(
            f"{checkpoint.folder} has no modules.json, so its vectors are assumed to be plain "
            "means of the hidden states, without Dense layers and L2. If the original has that "
            "file, load the original (a cache that another program filled may lack it: load once "
            "online); if not, say how to pool: pooling='mean', 'cls', ...",
            PoolingWarning,
        )


def _read_mode(path: Path, width: int) -> PoolMode:
    raw = read_json(path)
    s = Settings(raw, path)
    stated = s.size("embedding_dimension", "word_embedding_dimension", default=width)
    if stated != width:
        raise ConfigError(f"{path} pools {stated} columns, but the encoder has {width}")
    if raw.get("include_prompt") is False:
        raise ConfigError(f"{path}: include_prompt = false is not supported")
    if (name := raw.get("pooling_mode")) is not None:
        if isinstance(name, list) and len(name) == 1:
            name = name[0]
        if not isinstance(name, str) or name not in NAMES:
            raise ConfigError(
                f"{path}: pooling_mode = {name!r} is not supported; supported are "
                + ", ".join(sorted(NAMES))
            )
        return NAMES[name]
    unknown = [k for k, v in raw.items() if k.startswith("pooling_mode_") and v and k not in FLAGS]
    on = [flag for flag in FLAGS if raw.get(flag)]
    if unknown or len(on) > 1:
        raise ConfigError(
            f"{path} asks for {' and '.join(on + unknown)}: supported is one of {', '.join(FLAGS)}"
        )
    return FLAGS[on[0]] if on else "mean"


def _read_dense(folder: Path, width: int, dtype: torch.dtype) -> tuple[nn.Linear, str]:
    path = folder / "config.json"
    raw = read_json(path)
    s = Settings(raw, path)
    inputs, outputs = s.size("in_features"), s.size("out_features")
    if inputs != width:
        raise ConfigError(
            f"{path}: in_features = {inputs}, but the module before it gives {width} columns"
        )
    # sentence-transformers' default if the key is missing
    stated = str(s.get("activation_function", default="torch.nn.Tanh"))
    activation = stated.rpartition(".")[2]
    if activation not in ACTIVATIONS or not stated.startswith("torch.nn."):
        raise ConfigError(
            f"{path}: activation_function = {stated!r} is not supported; "
            f"supported are {', '.join(ACTIVATIONS)}"
        )
    s.refuse(DENSE_NEUTRAL)
    unknown = raw.keys() - DENSE_NEUTRAL.keys() - DENSE_KEYS
    if unknown:
        raise ConfigError(
            f"{path} has settings that are not supported: {', '.join(sorted(unknown))}"
        )
    # parameters made under a caller's inference_mode could never be trained
    with torch.inference_mode(False):
        layer = nn.Linear(inputs, outputs, bias=s.flag("bias", default=True), dtype=dtype)
    files = TensorFiles(folder)
    wanted = {f"linear.{name}": tuple(p.shape) for name, p in layer.named_parameters()}
    found = {name: files.shape(name) for name in files.names()}
    if found != wanted:
        raise CheckpointError(f"the tensors of {folder} are {found}, wanted {wanted}")
    broken: dict[str, int] = {}
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            parameter.copy_(files.read(f"linear.{name}"))
            broken |= not_finite(parameter, files.read, [f"linear.{name}"])
    warn_not_finite(folder, broken, dtype)
    return layer, activation
