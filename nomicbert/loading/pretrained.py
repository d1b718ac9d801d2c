"""What `from_pretrained` of every class does: folder -> config -> empty model -> its parameters."""

import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from nomicbert.config import EncoderConfig
from nomicbert.loading import hub, weights
from nomicbert.loading.folder import CheckpointFolder
from nomicbert.loading.hub_config import read_config
from nomicbert.loading.target import check_target, select_ops
from nomicbert.loading.tensor_files import TensorFiles
from nomicbert_kernels import Backend, compute_dtype

Model = TypeVar("Model", bound=nn.Module)
# Makes an empty model, and names those of its parameters that are new and not in the files.
Build = Callable[[EncoderConfig, TensorFiles], tuple[Model, Collection[str]]]


def load(
    build: Build[Model],
    source: str | os.PathLike[str] | CheckpointFolder,
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    dtype: torch.dtype | str = torch.float32,
    device: torch.device | str | None = None,
    backend: Backend = "auto",
    rotary_scaling_factor: float | None = None,
    strict: bool = True,
    torch_dtype: torch.dtype | str | None = None,
    device_map: torch.device | str | None = None,
    **ignored: Any,
) -> Model:
    """Load a checkpoint into the model that `build` makes, in eval mode.

    `source` is a local folder, a repository of the hub, or a folder whose settings have been read.
    The keywords are those that `NomicBert.from_pretrained` documents.
    """
    wanted, target = check_target(
        dtype=dtype,
        torch_dtype=torch_dtype,
        device=device,
        device_map=device_map,
        backend=backend,
        say=True,
    )
    if isinstance(source, CheckpointFolder):
        folder, config = source.encoder, source.config
        if rotary_scaling_factor is not None:
            config = read_config(folder, rotary_scaling_factor)
    else:
        folder = hub.resolve(
            source,
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            local_files_only=local_files_only,
        )
        config = read_config(folder, rotary_scaling_factor)
    files = TensorFiles(folder)
    if wanted is None:
        wanted = weights.disk_dtype(files, config)
        select_ops(target, compute_dtype(target, wanted), backend)
    with torch.device("meta"), weights.Unfilled():
        model, fresh = build(config, files)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    stored = {name: shape for name, shape in shapes.items() if name not in fresh}
    # loaded inside somebody's inference_mode, the parameters could never be trained
    with torch.inference_mode(False):
        state = weights.load_state(
            files, config, stored, dtype=wanted, device=target, strict=strict
        )
        for name in fresh:
            state[name] = torch.empty(shapes[name], dtype=wanted, device=target)
            initialise(name, state[name], config.initializer_range)
        model.load_state_dict(state, assign=True)
    return model.eval()


def initialise(name: str, parameter: Tensor, std: float) -> None:
    """Draw from the distribution that BERT and NomicBERT are trained from; norms stay as made."""
    if "norm" not in name:
        # torch.nn.init's, which `weights.Unfilled` sees and skips
        nn.init.normal_(parameter, std=0.0 if name.endswith("bias") else std)


def save(
    folder: str | os.PathLike[str],
    config: EncoderConfig,
    model: nn.Module,
    extra: dict[str, Any] | None = None,
) -> None:
    """Write config.json and model.safetensors as the hub has them.

    Args:
        folder: may be the one that the model was loaded from.
        config: of the encoder.
        model: whose parameters are written.
        extra: keys of config.json that a head adds.
    """
    weights.save(Path(folder), config, model.state_dict(), extra or {})
