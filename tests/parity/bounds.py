"""How close is equal: the bounds of the parity tests, as data.

They are promises, not observations: a test that misses one has found a fault. Those that
`nomicbert verify` holds on a user's machine are the package's own.
"""

from __future__ import annotations

from nomicbert.verify.bounds import (
    EMBEDDING,
    HALF,
    HALF_VALUES,
    HIDDEN,
    ROUNDING_MARGIN,
    ROUTER_MARGIN,
    HalfBound,
)

__all__ = [
    "BACKENDS",
    "EMBEDDING",
    "FAULT",
    "GRADIENT",
    "HALF",
    "HALF_VALUES",
    "HIDDEN",
    "KEY_BIAS",
    "LOSS",
    "ROUNDING_MARGIN",
    "ROUTER_MARGIN",
    "HalfBound",
]

BACKENDS = ("reference", "torch")

GRADIENT = 1e-4  # of a parameter in float32, max abs difference / max abs
LOSS = 1e-5  # of a head in float32, abs
# Without rotary a key's bias shifts all logits of a query alike, so that its true gradient is 0;
# what rounding leaves is held against the gradient of the query's bias.
KEY_BIAS = 1e-5
FAULT = 10  # a planted fault exceeds its bound as many times
