"""Checks of arguments that several classes and functions take in the same way."""

import difflib
import inspect
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import torch

from nomicbert_kernels import fastest_dtype

DTYPES = ("float32", "float16", "bfloat16")


def refuse_unknown(unknown: Collection[str], *functions: Callable[..., Any]) -> None:
    """Raise a TypeError for a keyword that none of the functions has, naming the nearest one."""
    if not unknown:
        return
    name = next(iter(unknown))
    known = {
        parameter.name
        for function in functions
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.name not in unknown
    }
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(known))}"
    first = functions[0]
    # a class method inherited from elsewhere goes by the class that was called
    owner = getattr(first, "__self__", None)
    called = f"{owner.__name__}.{first.__name__}" if isinstance(owner, type) else first.__qualname__
    raise TypeError(f"{called} has no keyword {name!r}: {hint}")


def as_whole(name: str, value: Any) -> int:
    """A whole number from what a user may write; a TypeError names the argument."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be an integer, not {value!r}")
    return int(value)


def as_dtype(dtype: torch.dtype | str, device: torch.device) -> torch.dtype | None:
    """A torch dtype from what a user may write, for parameters on this device; None for "auto"."""
    if dtype == "auto":
        return None
    if dtype == "fastest":
        return fastest_dtype(device)[0]
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        known = ", ".join(f"torch.{d}" for d in DTYPES)
        raise ValueError(f"dtype must be one of {known}, 'auto' or 'fastest', not {dtype!r}")
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
    try:
        usable = torch.empty(0, device=found).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        why = str(error).splitlines()[0]
        raise ValueError(f"this torch cannot use the device {device!r}: {why}") from error
    if usable.type == "meta":
        raise ValueError("the device 'meta' holds no numbers: choose one that computes")
    return usable


def as_devices(names: Sequence[torch.device | str]) -> list[torch.device]:
    """Several devices from what a user may write: GPUs once each, or the CPU any number of times.

    Raises: ValueError: none, one that is not there, or a GPU named twice.
    """
    listed = isinstance(names, list | tuple) and len(names) > 0
    if not (listed and all(isinstance(name, str | torch.device) for name in names)):
        raise ValueError(f"device must be one device's name or a list of them, not {names!r}")
    found: list[torch.device] = []
    for name in names:
        # a GPU of another process gets no context in this one, which would take its memory
        device = as_gpu(name) or as_device(name)
        if device.type != "cpu" and device in found:
            raise ValueError(f"device names {str(device)!r} twice: a GPU takes one process")
        found.append(device)
    return found


def as_place(
    device: "torch.device | str | Sequence[torch.device | str] | None",
) -> tuple[torch.device | None, list[torch.device]]:
    """One device, or several, from what a user may write; None leaves the parameters alone.

    Raises: ValueError: what `as_device` and `as_devices` refuse.
    """
    if device is None:
        return None, []
    if isinstance(device, str | torch.device):
        return as_device(device), []
    return None, as_devices(device)


def as_gpu(name: torch.device | str) -> torch.device | None:
    """The CUDA device of this number, if the name has one and it is there."""
    number = str(name).removeprefix("cuda:")
    there = number.isdecimal() and torch.cuda.is_available()
    return torch.device(str(name)) if there and int(number) < torch.cuda.device_count() else None
