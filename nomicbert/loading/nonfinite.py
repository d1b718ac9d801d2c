"""Check that a checkpoint's weights are finite, one parameter at a time after it has been read.

A NaN or infinite value turns every vector that it contributes to into NaN. Loading still
continues, because the damage may be local: a bad row of the vocabulary affects only the texts
that contain the token.
"""

from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from nomicbert.user_warnings import WeightWarning, warn

# Elements per step when counting, which bounds the memory of the converted copy.
PIECE = 2**20
# Maximum number of tensors named in a warning.
LISTED = 5


def not_finite(
    parameter: Tensor, read: Callable[[str], Tensor], names: Iterable[str]
) -> dict[str, int]:
    """Count the NaN and infinite values in each tensor that a parameter was read from.

    Args:
        parameter: contiguous, floating, any device. If all values are finite, the only cost is
            one `aminmax` without a copy: it propagates NaN and infinity. (A sum could overflow.)
        read: name on disk -> tensor.
        names: on disk, of the parameter's parts.

    Returns: names -> count of values not finite in the parameter's dtype; zero counts left out.
    """
    # tensors on the meta device have no data
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
    """Issue one WeightWarning that covers all non-finite tensors of a load, if there are any.

    Args:
        folder: of the weights.
        counts: names on disk -> count of values that are not finite.
        dtype: of the loaded parameters.
    """
    if not counts:
        return
    listed = ", ".join(f"{name} ({count})" for name, count in islice(counts.items(), LISTED))
    more = len(counts) - LISTED
    listed += f" and {more} more tensor{'s' * (more > 1)}" if more > 0 else ""
    message = (
        f"the weights of {folder} hold values that are NaN or infinite in {dtype}: {listed}. "
        "Vectors computed from them will be NaN. Download the checkpoint again; if the values are "
        "still there, report them to its authors"
    )
    if dtype != torch.float32:
        message += f" (values that are only too large for {dtype} need dtype=torch.float32)"
    warn(message, WeightWarning)
