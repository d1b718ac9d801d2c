"""Weight files (safetensors or .bin, whole or in shards) -> tensors by name; and back.

Where in the flow: below `weights`, which knows what the tensors are for. No code from a file runs.
"""

import json
import os
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nomicbert.errors import CheckpointError
from nomicbert.loading.json_settings import present, read_json
from nomicbert.loading.mapped_weights import Views
from nomicbert.loading.pickle_depth import check_depth
from nomicbert.loading.plain_files import check_file

# In order of preference: safetensors cannot contain code, and is memory-mapped.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
SAFE = "model.safetensors"
# Compressed weights are hardly smaller. Beyond this ratio of sizes, reading a few bytes would fill
# memory; the allowance is for tiny models.
MOST_COMPRESSED, ALLOWANCE = 20, 2**20
# The first bytes of a zip file.
ZIP = b"PK\x03\x04"


class TensorFiles:
    """The tensors of a folder by name, read from disk one at a time on request."""

    def __init__(self, folder: Path, safetensors: bool | None = None) -> None:
        """Open the folder's weights.

        Args:
            folder: holds them.
            safetensors: True reads no .bin, False nothing else; None prefers safetensors.

        Raises: CheckpointError: no weights, a damaged file, a shard outside the folder.
        """
        self.folder = folder
        self._open: dict[str, Any] = {}
        self._views: dict[str, Views | None] = {}
        for file in self._files(safetensors):
            safe = file.suffix == ".safetensors"
            tensors = _open_safetensors(file) if safe else _open_bin(file)
            views = Views.of(file) if safe else None
            for name in tensors.keys():
                if name in self._open:
                    raise CheckpointError(f"{folder} holds the tensor {name} in two shards")
                self._open[name], self._views[name] = tensors, views

    def _files(self, safetensors: bool | None) -> list[Path]:
        names = [n for n in WEIGHT_FILES if safetensors in (None, n.startswith(SAFE))]
        chosen = next((self.folder / n for n in names if present(self.folder / n)), None)
        if chosen is None:
            said = "" if safetensors is None else f", and use_safetensors is {safetensors}"
            raise CheckpointError(
                f"{self.folder} holds no weights: none of {', '.join(names)} is there{said}"
            )
        if chosen.suffix != ".json":
            return [chosen]
        shards = read_json(chosen).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(v, str) for v in shards.values()):
            raise CheckpointError(f"{chosen} has no weight_map of tensor names to file names")
        for shard in shards.values():
            if Path(shard).name != shard or shard in ("", ".", ".."):
                raise CheckpointError(f"{chosen} names the shard {shard!r:.80}, outside its folder")
            if not present(self.folder / shard):
                raise CheckpointError(f"{chosen} names the shard {shard!r:.80}, which is missing")
        return [self.folder / shard for shard in sorted(set(shards.values()))]

    def names(self) -> list[str]:
        """Tensor names as on disk."""
        return list(self._open)

    def read(self, name: str) -> Tensor:
        """One tensor, memory-mapped if the format allows."""
        tensors = self._open[name]
        tensor: Tensor = tensors[name] if isinstance(tensors, dict) else tensors.get_tensor(name)
        return tensor

    def view(
        self, names: tuple[str, ...], shape: tuple[int, ...], dtype: torch.dtype
    ) -> Tensor | None:
        """Tensors of one safetensors file as one view of it, or None; see `Views.stacked`."""
        first, *others = (self._views[name] for name in names)
        same = all(views is first for views in others)
        return first.stacked(names, shape, dtype) if first is not None and same else None

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor, without reading it."""
        tensors = self._open[name]
        if isinstance(tensors, dict):
            return tuple(tensors[name].shape)
        return tuple(tensors.get_slice(name).get_shape())


def _open_safetensors(file: Path) -> Any:
    check_file(file, None, CheckpointError)
    try:
        return safe_open(file, framework="pt", device="cpu")
    except (SafetensorError, OSError, MemoryError) as error:
        raise CheckpointError(f"{file} is not a valid safetensors file: {error}") from error


def _open_bin(file: Path) -> dict[str, Tensor]:
    size = check_file(file, None, CheckpointError)
    try:
        if not size:
            raise EOFError
        entries = _zip_entries(file)
        stored = sum(entry.file_size for entry in entries)
        if stored > MOST_COMPRESSED * size + ALLOWANCE:
            raise ValueError(f"{stored:,} bytes in a file of {size:,}")
        _check_pickles(file, entries)
        # only the zip format, torch.save's current one, can be memory-mapped; where an entry is
        # compressed, torch would map the compressed bytes
        mapped = bool(entries) and all(e.compress_type == zipfile.ZIP_STORED for e in entries)
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # whatever a damaged pickle makes torch raise
        raise CheckpointError(
            f"{file} is not a valid file of plain tensors, and nothing else is unpickled: "
            f"{_reason(error)}"
        ) from error
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in state.items()
    ):
        raise CheckpointError(f"{file} must hold a dictionary of tensors")
    empty = [name for name, tensor in state.items() if tensor.is_meta]
    if empty:
        raise CheckpointError(f"{file} has no values for {empty[0]}: it was saved on 'meta'")
    # a few values may be stored for many: the strides say so
    large = any(t.numel() * t.element_size() > max(size, stored) for t in state.values())
    if large or (entries and not _fits(state.values(), entries)):
        raise CheckpointError(f"{file} is damaged: a tensor is larger than what is stored for it")
    # an nn.Parameter would ask for gradients
    return {name: tensor.detach() for name, tensor in state.items()}


def _reason(error: Exception) -> str:
    """Why torch could not load a file, without its advice to allow code."""
    text = str(error).rpartition("WeightsUnpickler error: ")[2].strip()
    why = (text.splitlines() or ["it ends too early" if isinstance(error, EOFError) else ""])[0]
    why = why.partition(" was not an allowed global")[0]
    if "weights_only" in why or "Weights only" in why:
        return "it is not in torch.save's format, or in one that may contain code"
    return why or type(error).__name__


def _check_pickles(file: Path, entries: Iterable[zipfile.ZipInfo]) -> None:
    """Check the pickles of a file before torch reads them.

    Raises: ValueError: see `check_depth`.
    """
    if entries:
        with zipfile.ZipFile(file) as archive:
            for entry in entries:
                if entry.filename.endswith(".pkl"):
                    # torch can be told to leave it wrong; without one nothing is compared
                    del entry.CRC
                    with archive.open(entry) as opened:
                        check_depth(BytesIO(opened.read()))
        return
    with file.open("rb") as opened:  # the old format begins with five, the fourth has the tensors
        for _ in range(4):
            check_depth(opened)


def _zip_entries(file: Path) -> list[zipfile.ZipInfo]:
    """The entries of a zip file; empty for a file of another format.

    Raises: EOFError: it begins like a zip file, but does not end like one.
    """
    if not zipfile.is_zipfile(file):
        with file.open("rb") as opened:
            if opened.read(len(ZIP)) == ZIP:
                raise EOFError
        return []
    with zipfile.ZipFile(file) as archive:
        return archive.infolist()


def _fits(tensors: Iterable[Tensor], entries: Iterable[zipfile.ZipInfo]) -> bool:
    """Whether there is an entry of exactly the size of each tensor's storage.

    A mapped tensor would otherwise continue into the entries behind it.
    """
    dense = (t for t in tensors if t.layout == torch.strided and not t.is_quantized)
    storages = {s.data_ptr(): s.nbytes() for s in (t.untyped_storage() for t in dense)}
    stored = Counter(entry.file_size for entry in entries)
    return Counter(size for size in storages.values() if size) <= stored


def write(folder: Path, tensors: dict[str, Tensor], settings: Mapping[str, Any]) -> None:
    """Write model.safetensors and config.json, each to a temporary file that is then renamed.

    So a reader never sees half a file, and the folder may be the one that the weights came from.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as partial:
        weights, text = Path(partial, "model.safetensors"), Path(partial, "config.json")
        save_file(tensors, weights, metadata={"format": "pt"})
        text.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        os.replace(weights, folder / weights.name)
        os.replace(text, folder / text.name)
