"""Parameters that are views of a safetensors file in memory, in place of copies of its tensors.

Where in the flow: `weights` asks for a view first and copies what has none. `prepared_weights`
asks `reading` for a tensor to pack.

A packed weight is a second copy of a parameter, and encoding reads only that. A parameter that is a
view of the file takes no memory until it is read, and what was read the system can drop again. The
mapping is private: a change in place, as in training, copies the page and never reaches the file.

A file that is renamed over or deleted stays as it was for those who have mapped it. A file that is
overwritten in place changes under them; `reading` refuses that where it can. Transformers and other
loaders of safetensors files map them too.
"""

import json
import logging
import mmap
import os
import sys
import weakref
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nomicbert.errors import CheckpointError

logger = logging.getLogger(__name__)

# Setting this variable to 0 copies all tensors.
SWITCH = "NOMICBERT_MAP_WEIGHTS"
# Minimum bytes of a view. Smaller parameters are never packed, and share pages with others.
LEAST = 1 << 16
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# One 64-bit entry per page of this process, and its bits. A page of a private mapping is anonymous
# once it has been written. Source: Linux, Documentation/admin-guide/mm/pagemap.rst.
PAGEMAP = Path("/proc/self/pagemap")
ENTRY = 8
PRESENT, SWAPPED, OF_FILE = (np.uint64(1 << bit) for bit in (63, 62, 61))


class MappedFile(mmap.mmap):
    """A safetensors file, mapped privately. The views of it keep it alive.

    Attributes:
        path: of the file.
        address: where the file begins in memory.
    """

    path: Path
    address: int
    _descriptor: int
    _status: os.stat_result

    @classmethod
    def of(cls, path: Path, descriptor: int) -> "MappedFile":
        """Map an open file; closes `descriptor` with the last view, or on an error.

        Raises: OSError: the file cannot be mapped, as when memory is limited.
        """
        try:
            mapped = cls(descriptor, 0, access=mmap.ACCESS_COPY)
        except BaseException:
            os.close(descriptor)
            raise
        weakref.finalize(mapped, os.close, descriptor)
        mapped.path, mapped._descriptor = path, descriptor
        mapped.address = torch.frombuffer(mapped, dtype=torch.uint8, count=1).data_ptr()
        mapped._status = os.fstat(descriptor)
        return mapped

    def holds(self, tensor: Tensor) -> bool:
        """Whether a tensor's elements are in this mapping."""
        begin = tensor.data_ptr() - self.address
        return 0 <= begin and begin + tensor.nbytes <= len(self)

    def again(self) -> "MappedFile | None":
        """Another mapping of the same file, or None if the system refuses it.

        Raises: CheckpointError: the file has been written to since it was mapped.
        """
        then = self._status
        try:
            now = os.fstat(self._descriptor)
            if not os.path.samestat(then, now):  # closed by others, and used for another file
                return None
            if (then.st_size, then.st_mtime_ns) == (now.st_size, now.st_mtime_ns):
                return MappedFile.of(self.path, os.dup(self._descriptor))
        except OSError:
            return None
        raise CheckpointError(
            f"{self.path} was overwritten after it had been loaded: load it again. Replace the "
            f"file by renaming another one, or set {SWITCH}=0 to load copies of its tensors"
        )

    def view(self, begin: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor of this shape, whose first element is `begin` bytes into the file."""
        count = torch.Size(shape).numel()
        return torch.frombuffer(self, dtype=dtype, count=count, offset=begin).view(shape)


# Those that parameters may be in, by address: a tensor does not know the buffer that it views.
_MAPPED: "weakref.WeakValueDictionary[int, MappedFile]" = weakref.WeakValueDictionary()


class Views:
    """The tensors of one safetensors file as views of a mapping."""

    def __init__(self, path: Path) -> None:
        """Map a file that `safe_open` has accepted.

        Raises: OSError: it cannot be mapped.
        """
        self._mapped = MappedFile.of(path, os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        length = int.from_bytes(self._mapped[:8], "little")
        self._first = 8 + length
        self._header = json.loads(self._mapped[8 : self._first])
        _MAPPED[self._mapped.address] = self._mapped

    @classmethod
    def of(cls, path: Path) -> "Views | None":
        """The views of a file; None if it is to be copied: not on Linux, or switched off."""
        # elsewhere a mapped file could not be replaced, or its written pages not be found
        if sys.platform != "linux" or os.environ.get(SWITCH) == "0":
            return None
        try:
            return cls(path)
        except OSError as error:
            logger.info("%s is copied, because it cannot be mapped: %s", path, error)
            return None

    def stacked(
        self, names: tuple[str, ...], shape: tuple[int, ...], dtype: torch.dtype
    ) -> Tensor | None:
        """Tensors that follow each other in the file, as one.

        Args:
            names: on disk, in order.
            shape: of the result.
            dtype: of the result.

        Returns: a view of the file; None if it would not be one, because of another dtype, order or
            number of elements, an address that is no multiple of the element's size, or a result
            under LEAST bytes.
        """
        entries = [self._header.get(name, {}) for name in names]
        if any(DTYPES.get(entry.get("dtype")) != dtype for entry in entries):
            return None
        places = [entry["data_offsets"] for entry in entries]
        begin, end = places[0][0], places[-1][1]
        adjacent = all(one[1] == two[0] for one, two in pairwise(places))
        size = torch.Size(shape).numel() * dtype.itemsize
        fits = end - begin == size >= LEAST and self._first + end <= len(self._mapped)
        if not (adjacent and fits) or (self._first + begin) % dtype.itemsize:
            return None
        return self._mapped.view(self._first + begin, shape, dtype)


def reading(parameter: Tensor) -> Tensor:
    """A tensor with the values of a parameter, to be read once and dropped.

    Reading a view of a file makes its pages resident for as long as the view exists. So the result
    is a view of another mapping of the file, if the parameter has not been written to.

    Args:
        parameter: any tensor.

    Returns: the parameter itself, or a tensor of its shape and dtype in memory of its own.
    Raises: CheckpointError: the file has been overwritten.
    """
    if parameter.device.type != "cpu" or not parameter.is_contiguous():
        return parameter
    for reference in _MAPPED.valuerefs():
        mapped = reference()
        if mapped is None or not mapped.holds(parameter):
            continue
        other = None if written(parameter) else mapped.again()
        begin, shape = parameter.data_ptr() - mapped.address, tuple(parameter.shape)
        return parameter if other is None else other.view(begin, shape, parameter.dtype)
    return parameter


def written(parameter: Tensor) -> bool:
    """Whether a page of a private mapping has been written to; True if that cannot be found out.

    Args:
        parameter: a view of a `MappedFile`, contiguous. A page at its ends may hold other tensors.
    """
    page = mmap.PAGESIZE
    first = parameter.data_ptr() // page
    end = -(-(parameter.data_ptr() + parameter.nbytes) // page)
    try:
        with PAGEMAP.open("rb", buffering=0) as file:
            file.seek(first * ENTRY)
            entries = np.frombuffer(file.read((end - first) * ENTRY), np.uint64)
    except OSError:
        return True
    in_use = (entries & (PRESENT | SWAPPED)) != 0
    return len(entries) != end - first or bool((in_use & ((entries & OF_FILE) == 0)).any())
