"""Are a checkpoint's numbers finite? Asked of each parameter once it has been read.

One that is not makes NaN of every vector it reaches. Loading goes on all the same: a bad row of
the vocabulary, for one, spoils only the texts that use it.
"""

from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from nomicbert.user_warnings import WeightWarning, warn

# Numbers that are looked at together when they are counted.
PIECE = 2**20
# How many tensors a warning names.
LISTED = 5


def not_finite(
    parameter: Tensor, read: Callable[[str], Tensor], names: Iterable[str]
) -> dict[str, int]:
    """Count the NaN and infinite numbers of a parameter in the tensors that it was read from.

    Args:
        parameter: contiguous, floating, any device. When all is well it is only passed over once,
            without a copy: NaN and infinity come through as extremes. (A sum would overflow.)
        read: name on disk -> tensor.
        names: on disk, of the parameter's parts.

    Returns: names -> how many numbers are not finite in the parameter's dtype; without those of 0.
    """
    # on the meta device there are no numbers
    if parameter.is_meta or not parameter.numel():
        return {}
    if all(bool(extreme.isfinite()) for extreme in parameter.detach().aminmax()):
        return {}
    counts = {name: _count(read(name), parameter.dtype) for name in names}
    return {name: count for name, count in counts.items() if count}


def _count(tensor: Tensor, dtype: torch.dtype) -> int:
    pieces = torch.split(tensor.reshape(-1), PIECE)
    return sum(piece.numel() - int(piece.to(dtype).isfinite().sum()) for piece in pieces)


def warn_not_finite(folder: Path, counts: Mapping[str, int], dtype: torch.dtype) -> None:
    """Give one WeightWarning about all tensors of a load, or none if there are none.

    Args:
        folder: of the weights.
        counts: names on disk -> how many numbers are not finite.
        dtype: that they were loaded in.
    """
    if not counts:
        return
    listed = ", ".join(f"{name} ({count})" for name, count in islice(counts.items(), LISTED))
    more = len(counts) - LISTED
    listed += f" and {more} more tensor{'s' * (more > 1)}" if more > 0 else ""
    message = (
        f"the weights of {folder} hold numbers that are NaN or infinite in {dtype}: {listed}. "
        "Vectors that they reach will be NaN. Download the checkpoint again; if they are still "
        "there, report them to its authors"
    )
    if dtype != torch.float32:
        message += f" (numbers that are only too large for {dtype} need dtype=torch.float32)"
    warn(message, WeightWarning)
