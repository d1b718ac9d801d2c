"""Describe a checkpoint and how `Embedder` would load it, without reading its weight values.

Where in the flow: next to the embedder; `nomicbert info` prints it. It calls the same functions as
loading, with parameters on torch's meta device, so a checkpoint that cannot be loaded fails here
with the same error.
"""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from nomicbert.config import EncoderConfig
from nomicbert.loading import hub, weights
from nomicbert.loading.folder import Limit, read_folder
from nomicbert.loading.hub_preview import preview
from nomicbert.loading.json_settings import naming, read_json
from nomicbert.loading.license import License, read_license
from nomicbert.loading.purpose import refuse_unless_embedder
from nomicbert.loading.target import check_target, choose_ops
from nomicbert.loading.tensor_files import WEIGHT_FILES, TensorFiles
from nomicbert.loading.tensor_names import WORDS, canonical, recipes
from nomicbert.modeling.model import NomicBert
from nomicbert.text.max_length import stated_limit
from nomicbert.text.prompts import Prompts
from nomicbert.text.tokenizer import Tokenizer
from nomicbert.vectors.modules import read_pooling
from nomicbert.vectors.pooling import Pooling
from nomicbert.vectors.stated import stated_similarity, stated_truncate_dim
from nomicbert.vectors.step_files import WEIGHTED
from nomicbert.vectors.steps import Dense
from nomicbert_kernels import Backend, compute_dtype


@dataclass(frozen=True)
class Files:
    """The weight files on disk.

    Attributes:
        config_keys: the family of config.json's keys: "legacy" (n_embd), "native" (hidden_size)
            or "both".
        tensor_prefix: prefix of the encoder's tensor names on disk, such as "bert.".
        format: "safetensors" or "bin".
        shards: number of files that hold the encoder's weights.
        dtypes: of the tensors that are read.
        bytes: of the weight files, those of Dense and LayerNorm modules included.
        parameters: number of elements that are read, those of these modules included.
        unread: names of the encoder's tensors that are not read.
        beside: other weight files in the same folder, which are ignored.
    """

    config_keys: str
    tensor_prefix: str
    format: str
    shards: int
    dtypes: list[str]
    bytes: int
    parameters: int
    unread: list[str]
    beside: list[str]


@dataclass(frozen=True)
class Target:
    """Backend, device and dtypes that the encoder would run with.

    Attributes:
        dtype: of the parameters.
        computed_in: dtype of the hidden states.
        reason: why this backend was chosen.
    """

    backend: str
    device: str
    dtype: str
    computed_in: str
    reason: str


@dataclass(frozen=True)
class Description:
    """Facts about a checkpoint that are known before its weights are read.

    Attributes:
        folder: of the checkpoint; None if it has not been fetched and only its settings and the
            headers of its weights were looked at.
        license: of the weights; None if the card does not state it.
        vocabulary: number of tokens of the tokenizer; the embedding may have more rows.
        similarity: name of the similarity function that the checkpoint states.
        truncate_dim: columns that `encode` keeps by default, or None for all.
        states_modules: whether there is a modules.json.
    """

    folder: Path | None
    license: License | None
    config: EncoderConfig
    files: Files
    pooling: Pooling
    prompts: Prompts
    limit: Limit
    similarity: str
    truncate_dim: int | None
    vocabulary: int
    states_modules: bool
    target: Target

    @property
    def dense(self) -> list[tuple[int, int, str]]:
        """(in_features, out_features, activation) of each Dense layer."""
        layers = [step for step in self.pooling.steps if isinstance(step, Dense)]
        return [
            (layer.linear.in_features, layer.linear.out_features, layer.activation)
            for layer in layers
        ]

    @property
    def steps(self) -> list[str]:
        """The modules after pooling, in order, each in a few words."""
        return [*map(str, self.pooling.steps), *(["L2"] if self.pooling.normalize else [])]

    @property
    def matryoshka(self) -> str:
        """The steps that `matryoshka_dim` applies."""
        return "layer_norm -> slice -> L2" if self.pooling.matryoshka_layer_norm else "slice -> L2"

    @property
    def query_prompt(self) -> str | None:
        """Name of the prompt that `encode_query` prepends to a text."""
        return self.prompts.query_name or self.prompts.default

    @property
    def document_prompt(self) -> str | None:
        """Name of the prompt that `encode_document` prepends to a text."""
        return self.prompts.document_name or self.prompts.default

    @property
    def notes(self) -> list[str]:
        """Sentences about properties that are easily overlooked."""
        return list(_notes(self))


def describe(
    path_or_repo_id: str | os.PathLike[str],
    *,
    revision: str | None = None,
    local_files_only: bool = False,
    dtype: torch.dtype | str = torch.float32,
    device: torch.device | str | None = None,
    backend: Backend = "auto",
    rotary_scaling_factor: float | None = None,
) -> Description:
    """Describe a checkpoint as `Embedder` would load it.

    Args:
        path_or_repo_id: a local folder, or a repository of the hub. Of one that is not in the cache
            only the settings and the headers of the weights are fetched, if they are safetensors.
        revision: branch, tag or commit of the repository.
        local_files_only: make no request to the hub.
        dtype: as for `NomicBert.from_pretrained`, like all following arguments.
        device: where the parameters would go.
        backend: "auto", "reference", "torch", "int8", "triton", "fp8" or "invariant".
        rotary_scaling_factor: alpha of dynamic NTK scaling in place of the checkpoint's own.

    Raises: NomicBertError, ValueError: as loading would.
    """
    target = check_target(
        dtype=dtype, torch_dtype=None, device=device, device_map=None, backend=backend
    )
    with TemporaryDirectory(prefix="nomicbert-", ignore_cleanup_errors=True) as place:
        seen = None if local_files_only else preview(path_or_repo_id, revision, Path(place))
        if seen is not None:
            found = _describe(seen, rotary_scaling_factor, *target, backend)
            return replace(found, folder=None)
    folder = hub.resolve(path_or_repo_id, revision=revision, local_files_only=local_files_only)
    return _describe(folder, rotary_scaling_factor, *target, backend)


def _describe(
    folder: Path,
    rotary_scaling_factor: float | None,
    wanted: torch.dtype | None,
    place: torch.device,
    backend: Backend,
) -> Description:
    """Describe the checkpoint in a folder; the device and dtype are checked."""
    checkpoint = read_folder(folder, rotary_scaling_factor)
    refuse_unless_embedder(checkpoint)
    config = checkpoint.config
    prompts = Prompts.of(checkpoint.prompts, config)
    tensors = TensorFiles(checkpoint.encoder)
    wanted = wanted or weights.disk_dtype(tensors, config)
    with torch.device("meta"):
        pooling = read_pooling(checkpoint, wanted)
    after = [module.folder for module in checkpoint.modules or () if module.kind in WEIGHTED]
    files = _look_at_files(tensors, config, after)
    tokenizer = Tokenizer.from_settings(checkpoint.tokenizer, config.vocab_size)
    stated_limit(checkpoint, tokenizer.shortest)
    computed = compute_dtype(place, wanted)
    ops, reason = choose_ops(place, computed, backend)
    stored_in, computed_in = (str(dtype).removeprefix("torch.") for dtype in (wanted, computed))
    return Description(
        folder=folder,
        license=read_license(folder),
        config=config,
        files=files,
        pooling=pooling,
        prompts=prompts,
        limit=checkpoint.limit,
        similarity=stated_similarity(checkpoint),
        truncate_dim=stated_truncate_dim(checkpoint, pooling),
        vocabulary=tokenizer.rust.get_vocab_size(),
        states_modules=(folder / "modules.json").is_file(),
        target=Target(ops.name, str(place), stored_in, computed_in, reason),
    )


def _look_at_files(tensors: TensorFiles, config: EncoderConfig, after: list[Path]) -> Files:
    weights.check_layers(tensors, config)
    with torch.device("meta"), weights.Unfilled(), naming(tensors.folder / "config.json"):
        model = NomicBert(config)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    weights.load_state(tensors, config, shapes, dtype=torch.float32, device="meta")
    wanted = {part for recipe in recipes(config, list(shapes)) for part in recipe.parts}
    used = [name for name in tensors.names() if canonical(name) in wanted]
    word = next(name for name in used if canonical(name) == WORDS)
    read = [(tensors, name) for name in used]
    read += [(each, name) for each in map(TensorFiles, after) for name in each.names()]
    encoder = tensors.folder
    paths = _weight_files(encoder)
    return Files(
        config_keys=_config_keys(config),
        tensor_prefix=word.removesuffix(WORDS),
        format=paths[0].suffix.removeprefix("."),
        shards=len(paths),
        dtypes=sorted({str(each.read(name).dtype).removeprefix("torch.") for each, name in read}),
        bytes=sum(p.stat().st_size for place in (encoder, *after) for p in _weight_files(place)),
        parameters=sum(math.prod(each.shape(name)) for each, name in read),
        unread=sorted(set(tensors.names()).difference(used)),
        beside=[n for n in WEIGHT_FILES if (encoder / n).is_file()][1:],
    )


def _weight_files(folder: Path) -> list[Path]:
    """The files that `TensorFiles` opens; it has already validated them."""
    chosen = next(p for n in WEIGHT_FILES if (p := folder / n).is_file())
    if chosen.suffix != ".json":
        return [chosen]
    return [folder / shard for shard in sorted(set(read_json(chosen)["weight_map"].values()))]


def _config_keys(config: EncoderConfig) -> str:
    legacy, native = "n_embd" in config.source, "hidden_size" in config.source
    return "both" if legacy and native else "legacy" if legacy else "native"


def _notes(d: Description) -> Iterator[str]:
    config, files = d.config, d.files
    if d.license and d.license.non_commercial:
        yield f"the licence {d.license.name} forbids commercial use of the weights"
    stated = config.source.get("max_position_embeddings")
    trained = config.max_trained_positions
    if config.rotary_dim and stated not in (None, trained):
        yield (
            f"max_position_embeddings of {stated} in config.json is the served length; the trained "
            f"length is {trained}"
        )
    if config.rotary_dim and d.limit.tokens > trained and not config.rotary_scaling_factor:
        yield (
            f"texts of more than {trained} tokens are longer than the trained length, and their "
            "rotary angles are not scaled: nomic-ai's card sets rotary_scaling_factor to 2 for them"
        )
    if d.truncate_dim is not None:
        width = d.pooling.embedding_dimension
        yield f"encode keeps {d.truncate_dim} of {width} columns by default (truncate_dim)"
    if not d.pooling.include_prompt:
        yield "the tokens of a prompt are left out of pooling (include_prompt)"
    if not d.states_modules:
        yield "there is no modules.json: texts are pooled by mean"
    dtype = config.source.get("dtype") or config.source.get("torch_dtype")
    if isinstance(dtype, str) and [dtype] != files.dtypes:
        yield f"config.json says {dtype}, the weights are {' and '.join(files.dtypes)}"
    if files.beside:
        yield f"other weight files in the folder are ignored: {', '.join(files.beside)}"
