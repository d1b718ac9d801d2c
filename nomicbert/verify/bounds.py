"""Error bounds that the package guarantees, as data.

They are guarantees, not observations: a comparison that breaks one has found a fault.
"""

from dataclasses import dataclass

import torch

HIDDEN = 1e-4  # hidden states in float32, max abs
EMBEDDING = 1e-6  # unit vectors in float32, max abs
ROUTER_MARGIN = 1e-3  # below this probability margin a token's routing is not compared
ROUNDING_MARGIN = 1e-5  # below this margin rounding alone can flip a token's routing


@dataclass(frozen=True)
class HalfBound:
    """Bounds in a 16-bit dtype, against the float32 truth.

    Attributes:
        dtype: of weights and hidden states.
        rms: of the error, in multiples of the reference's own error in this dtype.
        most: the largest error, in the same unit.
        cosine: minimum cosine of an embedding to the float32 truth.
    """

    dtype: torch.dtype
    rms: float
    most: float
    cosine: float


HALF = (
    HalfBound(torch.bfloat16, rms=1.1, most=2.0, cosine=0.9995),
    HalfBound(torch.float16, rms=1.1, most=2.0, cosine=0.99995),
)
HALF_VALUES = 100_000  # a ratio of errors over fewer values is too noisy to judge
