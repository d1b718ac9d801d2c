"""How close is equal: the package's promises on its numbers, as data.

They are promises, not observations: a comparison that misses one has found a fault.
"""

from dataclasses import dataclass

import torch

HIDDEN = 1e-4  # hidden states in float32, max abs
EMBEDDING = 1e-6  # unit vectors in float32, max abs
ROUTER_MARGIN = 1e-3  # tokens routed by less may go another way, rightly
ROUNDING_MARGIN = 1e-5  # and below this they really may


@dataclass(frozen=True)
class HalfBound:
    """Bounds in a 16-bit dtype, against the float32 truth.

    Attributes:
        dtype: of weights and hidden states.
        rms: of the error, in multiples of the reference's own in this dtype.
        most: the largest error, likewise.
        cosine: of an embedding with the true one, at least.
    """

    dtype: torch.dtype
    rms: float
    most: float
    cosine: float


HALF = (
    HalfBound(torch.bfloat16, rms=1.1, most=2.0, cosine=0.9995),
    HalfBound(torch.float16, rms=1.1, most=2.0, cosine=0.99995),
)
HALF_VALUES = 100_000  # fewer do not settle a ratio of errors
