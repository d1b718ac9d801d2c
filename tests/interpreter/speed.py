"""Triton's interpreter, some three times as fast.

It replaces the functions of triton.language by those that compute in numpy: at the start of a
launch, and again at every call of a helper inside it, `tl.sum` included. Once a launch is enough.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import triton.language as tl
from triton.runtime import interpreter

# A function's globals as the interpreter reads them: both names under which kernels call it.
EVERYWHERE = types.SimpleNamespace(__globals__={"tl": tl, "core": tl.core})


def once_a_launch(patch: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def patch_all(_: Any) -> Any:
        return patch(EVERYWHERE)

    return patch_all


def call(self: Any, *args: Any, **kwargs: Any) -> Any:
    """A helper inside a launch, whose language is in place."""
    return self.rewrite()(*args, **kwargs)


def install() -> None:
    """Do so from now on in this process."""
    if interpreter.InterpretedFunction.__call__ is not call:
        interpreter._patch_lang = once_a_launch(interpreter._patch_lang)
        interpreter.InterpretedFunction.__call__ = call
