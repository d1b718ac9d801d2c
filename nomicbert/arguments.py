"""Checks of arguments that several classes and functions take in the same way."""

import difflib
import functools
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from nomicbert_kernels import fastest_dtype

DTYPES = ("float32", "float16", "bfloat16")
# Devices that people have, of those that torch knows.
DEVICES = ("cpu", "cuda", "mps", "xpu", "auto")
NEAR_DEVICES = {"gpu": "cuda", "nvidia": "cuda", "rocm": "cuda", "metal": "mps"}

# Keywords of sentence-transformers that no function here has -> what to do.
INSTEAD = {
    **dict.fromkeys(
        ("default_prompt_name", "prompts"),
        "give it to Embedder or CrossEncoder when loading, or set their attribute of this name",
    ),
    **dict.fromkeys(
        ("similarity_fn_name", "truncate_dim"),
        "give it to Embedder when loading, or set its attribute of this name",
    ),
    "activation_fn": "give it to CrossEncoder when loading, or set its attribute of this name",
    "cache_folder": "give cache_dir",
    "chunk_size": "give batch_size",
    "config_kwargs": "give its entries as keywords, or change config.json",
    "max_length": "set max_seq_length of an Embedder or CrossEncoder",
    "model_kwargs": "give its entries as keywords",
    "max_shard_size": "leave it out: weights are written to one file",
    "modules": "write them into modules.json",
    "organization": "give repo_id as 'organization/name'",
    "pool": "give a list of devices as device",
    "repo_name": "give repo_id",
    "repo_path_or_name": "give repo_id",
    "processor_kwargs": "change the tokenizer's files",
    "tokenizer_kwargs": "change the tokenizer's files",
    "use_auth_token": "give token",
    "use_temp_dir": "leave it out: a temporary folder is always used",
}


def refuse_unknown(
    unknown: Collection[str],
    *functions: Callable[..., Any],
    more: Collection[str] = (),
    instead: Mapping[str, str] = INSTEAD,
) -> None:
    """Raise a TypeError for a keyword that no function has.

    Args:
        unknown: keywords; the first is named.
        functions: with the known keywords; the first one was called.
        more: other known keywords.
        instead: keyword -> what to do, in place of the nearest known one.
    """
    if not unknown:
        return
    name = next(iter(unknown))
    known = {
        parameter.name
        for function in functions
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    }
    known = (known | set(more)) - {"self", *unknown}
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(known))}"
    hint = instead.get(name, hint)
    first = functions[0]
    # an inherited method is named after the class that was called
    owner = getattr(first, "__self__", None)
    kind = owner if isinstance(owner, type) else type(owner)
    called = first.__qualname__ if owner is None else f"{kind.__name__}.{first.__name__}"
    raise TypeError(f"{called} has no keyword {name!r}: {hint}")


def checks_keywords(method: Callable[..., object]) -> Callable[..., object]:
    """Refuse a keyword that the method does not have: a TypeError that names the nearest one.

    A method that hands its keywords on leaves the check to the one that takes them.
    """
    found = inspect.signature(method).parameters.values()
    if inspect.Parameter.VAR_KEYWORD in {parameter.kind for parameter in found}:
        return method
    known = {parameter.name for parameter in found}

    @functools.wraps(method)
    def call(self: object, *inputs: Any, **keywords: Any) -> object:
        if keywords.keys() - known:
            refuse_unknown(
                sorted(keywords.keys() - known), method if self is None else method.__get__(self)
            )
        return method(self, *inputs, **keywords)

    return call


def as_whole(name: str, value: Any) -> int:
    """Convert an argument to int; the TypeError names it."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be an integer, not {value!r}")
    return int(value)


def as_dtype(dtype: torch.dtype | str, device: torch.device) -> torch.dtype | None:
    """Convert a dtype argument for parameters on `device`; None stands for "auto"."""
    if dtype == "auto":
        return None
    if dtype == "fastest":
        return fastest_dtype(device)[0]
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        known = ", ".join(f"torch.{d}" for d in DTYPES)
        names = ", ".join(map(repr, DTYPES))
        raise ValueError(
            f"dtype must be one of {known}, {names}, 'auto' or 'fastest', not {dtype!r}"
        )
    found: torch.dtype = getattr(torch, name)
    return found


def as_device(device: torch.device | str | None) -> torch.device:
    """Convert a device argument; None is the CPU."""
    strategies = ("balanced", "balanced_low_0", "sequential")
    if not isinstance(device, str | torch.device | None) or device in strategies:
        raise ValueError(f"device (or device_map) must be one device's name, not {device!r}")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device("cpu" if device is None else device)
    except RuntimeError as error:
        name = str(device).lower()
        near = NEAR_DEVICES.get(name) or next(iter(difflib.get_close_matches(name, DEVICES)), None)
        hint = f"did you mean {near!r}?" if near else f"known are {', '.join(DEVICES)} and cuda:N"
        raise ValueError(f"unknown device {device!r}: {hint}") from error
    try:
        usable = torch.empty(0, device=found).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        why = str(error).splitlines()[0]
        raise ValueError(f"this torch cannot use the device {device!r}: {why}") from error
    if usable.type == "meta":
        raise ValueError("the device 'meta' holds no numbers: choose one that computes")
    return usable


def as_devices(names: Sequence[torch.device | str]) -> list[torch.device]:
    """Convert a list of devices: each GPU once, the CPU any number of times.

    Raises: ValueError: empty list, unavailable device, or a GPU listed twice.
    """
    listed = isinstance(names, list | tuple) and len(names) > 0
    if not (listed and all(isinstance(name, str | torch.device) for name in names)):
        raise ValueError(f"device must be one device's name or a list of them, not {names!r}")
    found: list[torch.device] = []
    for name in names:
        # no CUDA context in this process for a worker's GPU: it would take memory there
        device = as_gpu(name) or as_device(name)
        if device.type != "cpu" and device in found:
            raise ValueError(f"device names {str(device)!r} twice: a GPU takes one process")
        found.append(device)
    return found


def as_place(
    device: "torch.device | str | Sequence[torch.device | str] | None",
) -> tuple[torch.device | None, list[torch.device]]:
    """Convert a device or a list of devices; None keeps the parameters where they are.

    Raises: ValueError: what `as_device` and `as_devices` refuse.
    """
    if device is None:
        return None, []
    if isinstance(device, str | torch.device):
        return as_device(device), []
    return None, as_devices(device)


def as_gpu(name: torch.device | str) -> torch.device | None:
    """The CUDA device that the name numbers, if it exists."""
    number = str(name).removeprefix("cuda:")
    there = number.isdecimal() and torch.cuda.is_available()
    return torch.device(str(name)) if there and int(number) < torch.cuda.device_count() else None
