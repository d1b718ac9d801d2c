"""Keywords of `from_pretrained` that several classes read in the same way."""

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch

from nomicbert_kernels import Backend, select_ops

DTYPES = ("float32", "float16", "bfloat16")


def refuse_unknown(unknown: Mapping[str, Any], *functions: Callable[..., Any]) -> None:
    """Raise a TypeError for a keyword that none of the functions has, naming the nearest one."""
    if not unknown:
        return
    name = next(iter(unknown))
    known = {
        parameter.name
        for function in functions
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(known))}"
    raise TypeError(f"{functions[0].__qualname__} has no keyword {name!r}: {hint}")


def as_dtype(dtype: torch.dtype | str) -> torch.dtype | None:
    """A torch dtype from what a user may write; None for "auto"."""
    if dtype == "auto":
        return None
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        known = ", ".join(f"torch.{d}" for d in DTYPES)
        raise ValueError(f"dtype must be one of {known} or 'auto', not {dtype!r}")
    found: torch.dtype = getattr(torch, name)
    return found


def as_device(device: torch.device | str | None) -> torch.device:
    """A device from what a user may write; None is the CPU."""
    strategies = ("balanced", "balanced_low_0", "sequential")
    if not isinstance(device, str | torch.device | None) or device in strategies:
        raise ValueError(f"device (or device_map) must be one device's name, not {device!r}")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device("cpu" if device is None else device)
    except RuntimeError as error:
        raise ValueError(f"unknown device {device!r}: {str(error).splitlines()[0]}") from error
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"there is no device {device!r} here: this torch sees {torch.cuda.device_count()} GPUs"
        )
    return found


def check_target(
    dtype: torch.dtype | str, device: torch.device | str | None, backend: Backend
) -> tuple[torch.dtype | None, torch.device]:
    """Dtype (None for "auto") and device; what cannot run is refused before anything is read.

    Raises:
        ValueError: unknown dtype, device or backend.
        BackendError: a backend that cannot run there.
    """
    wanted, target = as_dtype(dtype), as_device(device)
    select_ops(target, wanted or torch.float32, backend)
    return wanted, target
