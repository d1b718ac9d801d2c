"""sentence-transformers modules after the encoder (1_Pooling, 2_Dense, ...) -> Pooling.

Source: the module formats that sentence-transformers 2 to 6 write.
"""

from pathlib import Path
from typing import Any

import torch

from nomicbert.errors import ConfigError
from nomicbert.loading.folder import CheckpointFolder
from nomicbert.loading.json_settings import Settings, read_json
from nomicbert.user_warnings import PoolingWarning, warn
from nomicbert.vectors.pooling import Pooling
from nomicbert.vectors.step_files import READERS, SCORES, VECTOR, read_steps
from nomicbert.vectors.steps import Dense, Dropout, Normalize
from nomicbert_kernels import PoolMode

# Of pooling modes, and of modules. Each takes time and memory per call; in use are up to 10.
MOST = 100
# Keys before sentence-transformers 6: one boolean per mode, in the order of their columns.
FLAGS: dict[str, PoolMode] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
# Since sentence-transformers 6: a name, or a list of names.
NAMES: dict[str, PoolMode] = {
    **{mode: mode for mode in FLAGS.values()},
    "mean_sqrt_len_tokens": "mean_sqrt_len",
}


def read_pooling(
    checkpoint: CheckpointFolder,
    dtype: torch.dtype,
    chosen: PoolMode | None = None,
    output: str = VECTOR,
) -> Pooling:
    """Build the pooling of a checkpoint.

    Args:
        checkpoint: its settings.
        dtype: of the parameters of the modules after pooling.
        chosen: the mode of a checkpoint without modules.json; None is "mean".
        output: sentence-transformers' name of what the last module must give.

    Raises:
        ConfigError: a module, order or option that is not supported.
        ValueError: `chosen` is not a mode, or the checkpoint states its own.
        CheckpointError: a module's weights missing or of another shape.
    """
    mode = check_chosen(checkpoint, chosen) or "mean"
    config, modules = checkpoint.config, checkpoint.modules
    width = config.hidden_size
    # v1.5 and models fine-tuned from it: they were trained with layer_norm before the slice
    recipe = config.hidden_act == "swiglu"
    if modules is None:
        return Pooling(width, (mode,), matryoshka_layer_norm=recipe and mode == "mean").eval()
    if len(modules) > MOST:
        raise ConfigError(
            f"{checkpoint.folder / 'modules.json'} lists {len(modules):,} modules: supported are "
            f"up to {MOST}"
        )
    names = [module.kind for module in modules]
    if names[:2] != ["Transformer", "Pooling"] or not READERS.keys() >= set(names[2:]):
        raise ConfigError(
            f"{checkpoint.folder / 'modules.json'} lists {', '.join(names) or 'nothing'}: "
            f"supported are Transformer, Pooling, and any of {', '.join(READERS)} in any order"
        )
    modes, include_prompt = _read_modes(modules[1].folder / "config.json", width)
    found = read_steps(modules[2:], width * len(modes), dtype)
    steps = [read.step for read in found]
    if found and found[-1].gives != output:
        path = modules[-1].folder / "config.json"
        raise ConfigError(
            f"{path}: module_output_name = {found[-1].gives!r} is not supported at the end, only "
            f"{output!r} is"
        )
    if output == SCORES and not (steps and isinstance(steps[-1], Dense)):
        raise ConfigError(
            f"{checkpoint.folder / 'modules.json'} lists {', '.join(names)}: a reranker with "
            f"Pooling must end with a Dense whose module_output_name is {SCORES!r}"
        )
    normalize = bool(steps) and isinstance(steps[-1], Normalize)
    plain = all(isinstance(step, Dropout) for step in steps)
    return Pooling(
        width,
        modes,
        steps[: len(steps) - normalize],
        normalize,
        recipe and modes == ("mean",) and plain,
        include_prompt,
    ).eval()


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


def _read_modes(path: Path, width: int) -> tuple[tuple[PoolMode, ...], bool]:
    """The modes of 1_Pooling/config.json, and whether they include a text's prompt."""
    raw = read_json(path)
    s = Settings(raw, path)
    keys = ("embedding_dimension", "word_embedding_dimension")
    stated = s.size(*keys, default=width)
    if stated != width:
        key = next(key for key in keys if raw.get(key) is not None)
        raise ConfigError(
            f"{path}: {key} = {stated}, which pools {stated} columns, but the encoder has {width}"
        )
    if raw.get("include_prompt", True) is None:  # sentence-transformers takes it for false
        raise ConfigError(f"{path}: include_prompt must be true or false, not null")
    return _modes(raw, path), s.flag("include_prompt", default=True)


def _modes(raw: dict[str, Any], path: Path) -> tuple[PoolMode, ...]:
    if (stated := raw.get("pooling_mode")) is not None:
        names = stated if isinstance(stated, list) else [stated]
        if not names or not all(isinstance(name, str) and name in NAMES for name in names):
            raise ConfigError(
                f"{path}: pooling_mode = {stated!r:.80} is not supported; supported are "
                + ", ".join(sorted(NAMES))
                + ", and a list of them"
            )
        if len(names) > MOST:
            raise ConfigError(
                f"{path}: pooling_mode lists {len(names):,} modes: supported are up to {MOST}"
            )
        return tuple(NAMES[name] for name in names)
    unknown = [k for k, v in raw.items() if k.startswith("pooling_mode_") and v and k not in FLAGS]
    if unknown:
        raise ConfigError(
            f"{path} asks for {' and '.join(unknown)}: supported are {', '.join(FLAGS)}"
        )
    return tuple(mode for flag, mode in FLAGS.items() if raw.get(flag)) or ("mean",)
