"""The choice of a backend's ops, whose refusal is an error of this package.

Where in the flow: whatever of nomicbert needs ops asks here. `nomicbert_kernels` decides and knows
nothing of our errors; its own is kept as the cause.
"""

from collections.abc import Callable
from typing import TypeVar

import torch

import nomicbert_kernels
from nomicbert.errors import BackendError
from nomicbert_kernels import Backend, Ops

Chosen = TypeVar("Chosen")


def select_ops(device: torch.device | str, dtype: torch.dtype, backend: Backend = "auto") -> Ops:
    """As `nomicbert_kernels.select_ops`, which also logs why.

    Raises:
        ValueError: unknown backend or dtype.
        BackendError: the backend cannot run here.
    """
    return _chosen(nomicbert_kernels.select_ops, device, dtype, backend)


def choose_ops(
    device: torch.device | str, dtype: torch.dtype, backend: Backend = "auto"
) -> tuple[Ops, str]:
    """As `nomicbert_kernels.choose_ops`: the ops, and why it is these; it raises as the other."""
    return _chosen(nomicbert_kernels.choose_ops, device, dtype, backend)


def _chosen(
    choose: Callable[[torch.device | str, torch.dtype, Backend], Chosen],
    device: torch.device | str,
    dtype: torch.dtype,
    backend: Backend,
) -> Chosen:
    try:
        return choose(device, dtype, backend)
    except nomicbert_kernels.BackendError as error:
        raise BackendError(str(error)) from error
