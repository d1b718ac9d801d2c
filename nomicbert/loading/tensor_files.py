"""Weight files (safetensors or .bin, whole or in shards) -> tensors by name; and back.

Where in the flow: below `weights`, which knows what the tensors are for. No code from a file runs.
"""

import json
import os
import pickle
import struct
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nomicbert.errors import CheckpointError
from nomicbert.loading.json_settings import present, read_json

# In order of preference: safetensors cannot contain code, and is memory-mapped.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
# Exceptions that torch.load raises on a truncated or forged file.
TORN = (
    pickle.UnpicklingError, zipfile.BadZipFile, struct.error, EOFError, RuntimeError, LookupError,
    ValueError, TypeError, AttributeError, AssertionError, OverflowError, OSError,
)  # fmt: skip


class TensorFiles:
    """The tensors of a folder by name, read from disk one at a time on request."""

    def __init__(self, folder: Path) -> None:
        """Open the folder's weights.

        Raises: CheckpointError: no weights, a damaged file, a shard outside the folder.
        """
        self.folder = folder
        self._open: dict[str, Any] = {}
        for file in self._files():
            tensors = _open_safetensors(file) if file.suffix == ".safetensors" else _open_bin(file)
            for name in tensors.keys():
                if name in self._open:
                    raise CheckpointError(f"{folder} holds the tensor {name} in two shards")
                self._open[name] = tensors

    def _files(self) -> list[Path]:
        chosen = next((self.folder / n for n in WEIGHT_FILES if present(self.folder / n)), None)
        if chosen is None:
            raise CheckpointError(
                f"{self.folder} holds no weights: none of {', '.join(WEIGHT_FILES)} is there"
            )
        if chosen.suffix != ".json":
            return [chosen]
        shards = read_json(chosen).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(v, str) for v in shards.values()):
            raise CheckpointError(f"{chosen} has no weight_map of tensor names to file names")
        for shard in shards.values():
            if Path(shard).name != shard or shard in ("", ".", ".."):
                raise CheckpointError(f"{chosen} names the shard {shard!r}, outside its folder")
            if not (self.folder / shard).is_file():
                raise CheckpointError(f"{chosen} names the shard {shard!r}, which is missing")
        return [self.folder / shard for shard in sorted(set(shards.values()))]

    def names(self) -> list[str]:
        """Tensor names as on disk."""
        return list(self._open)

    def read(self, name: str) -> Tensor:
        """One tensor, memory-mapped if the format allows."""
        tensors = self._open[name]
        tensor: Tensor = tensors[name] if isinstance(tensors, dict) else tensors.get_tensor(name)
        return tensor

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor, without reading it."""
        tensors = self._open[name]
        if isinstance(tensors, dict):
            return tuple(tensors[name].shape)
        return tuple(tensors.get_slice(name).get_shape())


def _open_safetensors(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is not a valid safetensors file: {error}") from error


def _open_bin(file: Path) -> dict[str, Tensor]:
    try:
        entries = _zip_entries(file)
        # only the zip format, torch.save's current one, can be memory-mapped; where an entry is
        # compressed, torch would map the compressed bytes
        mapped = bool(entries) and all(e.compress_type == zipfile.ZIP_STORED for e in entries)
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except TORN as error:
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"{file} is not a valid file of plain tensors, and nothing else is unpickled: {why}"
        ) from error
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in state.items()
    ):
        raise CheckpointError(f"{file} must hold a dictionary of tensors")
    empty = [name for name, tensor in state.items() if tensor.is_meta]
    if empty:
        raise CheckpointError(f"{file} has no values for {empty[0]}: it was saved on 'meta'")
    if entries and not _fits(state.values(), entries):
        raise CheckpointError(f"{file} is damaged: a tensor is larger than what is stored for it")
    # an nn.Parameter would ask for gradients
    return {name: tensor.detach() for name, tensor in state.items()}


def _zip_entries(file: Path) -> list[zipfile.ZipInfo]:
    """The entries of a zip file; empty for a file of another format."""
    if not zipfile.is_zipfile(file):
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
