"""What parameters are loaded for: dtype, device and backend, checked before anything is read.

Where in the flow: whatever of nomicbert needs ops asks here. `nomicbert_kernels` chooses them and
knows nothing of our errors; its own is kept as the cause.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch

import nomicbert_kernels
from nomicbert.arguments import as_device, as_dtype, refuse_unknown
from nomicbert.errors import BackendError
from nomicbert_kernels import Backend, Ops, compute_dtype, fastest_dtype

Chosen = TypeVar("Chosen")

logger = logging.getLogger(__name__)


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


def check_target(
    *,
    dtype: torch.dtype | str,
    torch_dtype: torch.dtype | str | None,
    device: torch.device | str | None,
    device_map: torch.device | str | None,
    backend: Backend,
    say: bool = False,
) -> tuple[torch.dtype | None, torch.device]:
    """Dtype (None for "auto") and device; what cannot run is refused before anything is read.

    The old name torch_dtype goes before dtype's default, device before device_map. With `say` the
    log tells what "fastest" has come to: whoever loads the parameters asks for that, once.

    Raises:
        ValueError: unknown dtype, device or backend.
        BackendError: a backend that cannot run there.
    """
    asked = dtype if torch_dtype is None else torch_dtype
    target = as_device(device_map if device is None else device)
    wanted = as_dtype(asked, target)
    select_ops(target, compute_dtype(target, wanted or torch.float32), backend)
    if say and asked == "fastest":
        where = "this CPU" if target.type == "cpu" else target
        why = fastest_dtype(target)[1]
        logger.warning("dtype='fastest' is %s on %s: %s", wanted, where, why)
    return wanted, target


def check_keywords(
    given: Mapping[str, Any], called: Callable[..., Any], *loaders: Callable[..., Any]
) -> None:
    """Refuse what loading would refuse, before a checkpoint is looked for.

    Args:
        given: keywords that `called` hands on.
        called: for the message.
        loaders: the `from_pretrained` that take them, with dtype, device and backend among them.

    Raises: TypeError: unknown keyword. What `check_target` raises.
    """
    known = {
        name: default
        for loader in loaders
        for name, default in (loader.__kwdefaults__ or {}).items()
    }
    refuse_unknown(sorted(given.keys() - known), called, *loaders)
    names = ("dtype", "torch_dtype", "device", "device_map", "backend")
    check_target(**{name: given.get(name, known[name]) for name in names})
