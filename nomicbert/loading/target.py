"""Check dtype, device and backend before any weights are read, and select the ops.

Where in the flow: the only module of nomicbert that asks `nomicbert_kernels` for ops. The kernels
do not know nomicbert's error classes: their BackendError is re-raised as ours, kept as the cause.
"""

import logging
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

import torch

import nomicbert_kernels
from nomicbert.arguments import as_device, as_dtype
from nomicbert.errors import BackendError
from nomicbert.loading.keywords import refuse_others
from nomicbert_kernels import Backend, Ops, compute_dtype, fastest_dtype

Chosen = TypeVar("Chosen")

logger = logging.getLogger(__name__)


def select_ops(device: torch.device | str, dtype: torch.dtype, backend: Backend = "auto") -> Ops:
    """Call `nomicbert_kernels.select_ops`, which also logs the reason for its choice.

    Raises:
        ValueError: unknown backend or dtype.
        BackendError: the backend cannot run here.
    """
    return _chosen(nomicbert_kernels.select_ops, device, dtype, backend)


def choose_ops(
    device: torch.device | str, dtype: torch.dtype, backend: Backend = "auto"
) -> tuple[Ops, str]:
    """The ops and the reason for the choice, without logging; raises as `select_ops` does."""
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
    """Resolve dtype (None for "auto") and device, and refuse a combination that cannot run.

    The old name torch_dtype overrides dtype, and device overrides device_map. With `say`, the
    choice made for "fastest" is logged; only the caller that loads the parameters passes it.

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
    given: Mapping[str, Any],
    called: Callable[..., Any],
    *loaders: Callable[..., Any],
    more: Collection[str] = (),
) -> None:
    """Check a loader's keywords before a checkpoint is looked for.

    Args:
        given: keywords that `called` passes on.
        called: named in the error message.
        loaders: the `from_pretrained` methods that accept them, dtype, device and backend included.
        more: keywords that `called` has besides those in its signature, for the message.

    Raises: TypeError: unknown keyword. Also the errors of `refuse_others` and `check_target`.
    """
    known = {
        name: default
        for loader in loaders
        for name, default in (loader.__kwdefaults__ or {}).items()
    }
    others = {name: given[name] for name in sorted(given.keys() - known)}
    refuse_others(others, called, *loaders, more=more)
    names = ("dtype", "torch_dtype", "device", "device_map", "backend")
    check_target(**{name: given.get(name, known[name]) for name in names})
