"""The error bounds of the parity tests, as data.

They are guarantees, not observations: a test that breaks one has found a fault. The bounds that
`nomicbert verify` checks on a user's machine are defined in the package.
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
# Without rotary a key's bias shifts all logits of a query equally, so its true gradient is 0. The
# rounding error is compared with the gradient of the query's bias.
KEY_BIAS = 1e-5
FAULT = 10  # a planted fault must exceed its bound by this factor
