"""Shared by all `from_pretrained`: folder -> config -> empty model -> its parameters."""

import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypedDict, TypeVar

import torch
from torch import Tensor, nn

from nomicbert.config import EncoderConfig
from nomicbert.errors import CheckpointError
from nomicbert.loading import hub, weights
from nomicbert.loading.folder import CheckpointFolder, find_encoder
from nomicbert.loading.hub_config import read_config, unlike_transformers
from nomicbert.loading.json_settings import naming, present
from nomicbert.loading.origin import Origin
from nomicbert.loading.publishing import PublishedModule
from nomicbert.loading.target import check_target, select_ops
from nomicbert.loading.tensor_files import TensorFiles
from nomicbert.user_warnings import ConfigWarning, warn
from nomicbert_kernels import Backend, PoolMode, compute_dtype

Model = TypeVar("Model", bound=PublishedModule)
# Builds an empty model and lists its new parameters, which are not in the files.
Build = Callable[[EncoderConfig, TensorFiles], tuple[Model, Collection[str]]]


class ModelKeywords(TypedDict, total=False):
    """Keywords of `NomicBert.from_pretrained` about the model, not about its location."""

    dtype: torch.dtype | str
    device: torch.device | str | None
    backend: Backend
    rotary_scaling_factor: float | None
    add_pooling_layer: bool
    strict: bool
    torch_dtype: torch.dtype | str | None
    device_map: torch.device | str | None
    trust_remote_code: bool | None
    safe_serialization: bool | None


class LoadKeywords(ModelKeywords, total=False):
    """All of its keywords."""

    revision: str | None
    cache_dir: str | os.PathLike[str] | None
    token: str | bool | None
    local_files_only: bool


class EmbedderKeywords(LoadKeywords, total=False):
    """The same for `Embedder`."""

    pooling: PoolMode | None


class CrossEncoderKeywords(LoadKeywords, total=False):
    """The same for `CrossEncoder`."""

    num_labels: int | None
    max_length: int | None


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
        top, folder, config = source.folder, source.encoder, source.config
        if rotary_scaling_factor is not None:
            config = read_config(folder, rotary_scaling_factor)
    else:
        top = hub.resolve(
            source,
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            local_files_only=local_files_only,
        )
        folder = find_encoder(top, custom=True)  # modules of custom code are not run here
        config = read_config(folder, rotary_scaling_factor)
    if present(folder / "adapter_config.json"):
        raise CheckpointError(
            f"{folder} holds an adapter next to the weights (adapter_config.json): load both with "
            "peft, call merge_and_unload, and save the result; or remove that file"
        )
    files = TensorFiles(folder)
    if wanted is None:
        wanted = weights.disk_dtype(files, config)
        select_ops(target, compute_dtype(target, wanted), backend)
    weights.check_layers(files, config)
    with torch.device("meta"), weights.Unfilled(), naming(folder / "config.json"):
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
    model.loaded_from = Origin.of(top)
    return model.eval()


def initialise(name: str, parameter: Tensor, std: float) -> None:
    """Draw from the initial distribution of BERT and NomicBERT; norms keep torch's values."""
    if "norm" not in name:
        # torch.nn.init's, which `weights.Unfilled` intercepts
        nn.init.normal_(parameter, std=0.0 if name.endswith("bias") else std)


def save(
    folder: str | os.PathLike[str],
    config: EncoderConfig,
    model: nn.Module,
    extra: Mapping[str, object] | None = None,
) -> None:
    """Write config.json and model.safetensors as the hub has them.

    Args:
        folder: may be the folder that the model was loaded from.
        config: of the encoder.
        model: its parameters are written.
        extra: additional keys of config.json, from a head.
    """
    weights.save(Path(folder), config, model.state_dict(), extra or {})
    if found := unlike_transformers(config):
        warn(
            f"the config.json saved in {os.fspath(folder)} says {' and '.join(found)}, which "
            "transformers' own NomicBertModel ignores: load it with this package, or with the "
            "original code",
            ConfigWarning,
        )
