"""How close is equal: the bounds of the parity tests, as data.

They are promises, not observations: a test that misses one has found a fault.
"""

from __future__ import annotations

import dataclasses

import torch

BACKENDS = ("reference", "torch")

HIDDEN = 1e-4  # hidden states in float32, max abs
EMBEDDING = 1e-6  # unit vectors in float32, max abs
GRADIENT = 1e-4  # of a parameter in float32, max abs difference / max abs
LOSS = 1e-5  # of a head in float32, abs
# Without rotary a key's bias shifts all logits of a query alike, so that its true gradient is 0;
# what rounding leaves is held against the gradient of the query's bias.
KEY_BIAS = 1e-5
ROUTER_MARGIN = 1e-3  # tokens routed by less may go another way, rightly
ROUNDING_MARGIN = 1e-5  # and below this they really may
FAULT = 10  # a planted fault exceeds its bound as many times


@dataclasses.dataclass(frozen=True)
class HalfBound:
    """Bounds in a 16-bit dtype, against the float32 truth.

    Attributes:
        dtype: of weights and hidden states.
        rms: of the error, in multiples of transformers' own in this dtype.
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
