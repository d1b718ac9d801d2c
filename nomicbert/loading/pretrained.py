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
from nomicbert.loading.given_config import GivenConfig, chosen_config, with_dropout
from nomicbert.loading.given_tensors import GivenTensors, has_own_names, own_tensors
from nomicbert.loading.hub_config import unlike_transformers
from nomicbert.loading.json_settings import naming, present
from nomicbert.loading.keywords import OffKeywords, check_accepted
from nomicbert.loading.origin import Origin
from nomicbert.loading.publishing import PublishedModule
from nomicbert.loading.target import check_target, select_ops
from nomicbert.loading.tensor_files import TensorFiles
from nomicbert.user_warnings import ConfigWarning, warn
from nomicbert_kernels import Backend, PoolMode, compute_dtype

# Maximum number of names that an error message lists.
LISTED = weights.LISTED

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
    config: GivenConfig | None
    state_dict: Mapping[str, Tensor] | None
    hidden_dropout_prob: float | None
    attention_probs_dropout_prob: float | None
    use_safetensors: bool | None
    attn_implementation: str | None
    low_cpu_mem_usage: bool | None
    weights_only: bool | None


class LoadKeywords(ModelKeywords, total=False):
    """All of its keywords."""

    revision: str | None
    cache_dir: str | os.PathLike[str] | None
    token: str | bool | None
    local_files_only: bool


class HeadKeywords(LoadKeywords, OffKeywords, total=False):
    """Keywords of a head that are passed on, with those of transformers that are switched off."""

    subfolder: str
    force_download: bool


class EmbedderKeywords(LoadKeywords, total=False):
    """The same for `Embedder`."""

    pooling: PoolMode | None


class CrossEncoderKeywords(LoadKeywords, total=False):
    """The same for `CrossEncoder`."""

    num_labels: int | None
    max_length: int | None


def load(
    build: Build[Model],
    source: str | os.PathLike[str] | CheckpointFolder | None,
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    subfolder: str = "",
    force_download: bool = False,
    dtype: torch.dtype | str = torch.float32,
    device: torch.device | str | None = None,
    backend: Backend = "auto",
    rotary_scaling_factor: float | None = None,
    strict: bool = True,
    torch_dtype: torch.dtype | str | None = None,
    device_map: torch.device | str | None = None,
    config: GivenConfig | None = None,
    state_dict: Mapping[str, Tensor] | None = None,
    hidden_dropout_prob: float | None = None,
    attention_probs_dropout_prob: float | None = None,
    use_safetensors: bool | None = None,
    attn_implementation: str | None = None,
    low_cpu_mem_usage: bool | None = None,
    weights_only: bool | None = None,
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
    check_accepted(attn_implementation, low_cpu_mem_usage, weights_only)
    if not isinstance(use_safetensors, bool | None):
        raise TypeError(f"use_safetensors must be True, False or None, not {use_safetensors!r:.80}")
    top: Path | None = None
    folder: Path | None = None
    if isinstance(source, CheckpointFolder):
        for name, value in (("subfolder", subfolder), ("force_download", force_download)):
            if value:
                raise ValueError(f"{name} is for a path or a repository, not a folder once read")
        top, folder = source.folder, source.encoder
        if config is None and rotary_scaling_factor is None:
            config = source.config
    elif source is not None or config is None or state_dict is None:
        if source is None:
            raise ValueError("without a path or repository, give both config and state_dict")
        top = hub.resolve(
            source,
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            local_files_only=local_files_only,
            subfolder=subfolder,
            force_download=force_download,
            use_safetensors=use_safetensors,
        )
        folder = find_encoder(top, custom=True)  # modules of custom code are not run here
    chosen = with_dropout(
        chosen_config(config, folder, rotary_scaling_factor),
        hidden_dropout_prob,
        attention_probs_dropout_prob,
    )
    if state_dict is not None:
        files: TensorFiles = GivenTensors(state_dict, chosen)
    else:
        assert folder is not None, "refused above"
        files = _files_of(folder, chosen, use_safetensors)
    model = _filled(build, chosen, files, wanted, target, backend, strict)
    if top is not None:
        model.loaded_from = Origin.of(top)
    return model


def _files_of(folder: Path, config: EncoderConfig, use_safetensors: bool | None) -> TensorFiles:
    """The weights of a folder, also a state dict under the names of our parameters."""
    if present(folder / "adapter_config.json"):
        raise CheckpointError(
            f"{folder} holds an adapter next to the weights (adapter_config.json): load both with "
            "peft, call merge_and_unload, and save the result; or remove that file"
        )
    files = TensorFiles(folder, use_safetensors)
    if has_own_names(files.names()):
        state = {name: files.read(name) for name in files.names()}
        return GivenTensors(state, config, folder)
    return files


def _filled(
    build: Build[Model],
    config: EncoderConfig,
    files: TensorFiles,
    wanted: torch.dtype | None,
    target: torch.device,
    backend: Backend,
    strict: bool,
) -> Model:
    """Build the model, and read its parameters."""
    if wanted is None:
        wanted = weights.disk_dtype(files, config)
        select_ops(target, compute_dtype(target, wanted), backend)
    weights.check_layers(files, config)
    with torch.device("meta"), weights.Unfilled(), naming(files.folder / "config.json"):
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
    """Draw from the initial distribution of BERT and NomicBERT; norms keep torch's values."""
    if "norm" not in name:
        # torch.nn.init's, which `weights.Unfilled` intercepts
        nn.init.normal_(parameter, std=0.0 if name.endswith("bias") else std)


def save(
    folder: str | os.PathLike[str],
    config: EncoderConfig,
    model: nn.Module,
    extra: Mapping[str, object] | None = None,
    *,
    state_dict: Mapping[str, Tensor] | None = None,
    more: Mapping[str, Tensor] | None = None,
) -> None:
    """Write config.json and model.safetensors as the hub has them.

    Args:
        folder: may be the folder that the model was loaded from.
        config: of the encoder.
        model: its parameters are written.
        extra: additional keys of config.json, from a head.
        state_dict: tensors in place of the parameters, under the model's names or as on the hub.
        more: tensors that no parameter has, under their names on the hub.

    Raises: ValueError: a parameter that `state_dict` lacks. CheckpointError: as for loading.
    """
    state: Mapping[str, Tensor] = model.state_dict()
    if state_dict is not None:
        dtype = next(iter(state.values())).dtype
        given = own_tensors(state_dict, config, model, dtype)
        if lacking := sorted(state.keys() - given.keys()):
            raise ValueError(f"state_dict lacks {', '.join(lacking[:LISTED])}")
        state = {name: given[name] for name in state}
    weights.save(Path(folder), config, state, extra or {}, more or {})
    if found := unlike_transformers(config):
        warn(
            f"the config.json saved in {os.fspath(folder)} says {' and '.join(found)}, which "
            "transformers' own NomicBertModel ignores: load it with this package, or with the "
            "original code",
            ConfigWarning,
        )
