"""The warnings of nomicbert, and how they are given.

A warning says that the result may not be what the caller meant: it is a Python warning, with a
class of its own, so that it can be silenced or made an error. What was merely decided (a backend,
a dtype) is logged instead.
"""

import os
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path


def _folder(package: str) -> str:
    """Where a package lies, without importing it; the end keeps out neighbours of a longer name."""
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return str(Path(spec.origin).parent) + os.sep


# Ours, and torch's: a module is called through nn.Module.
INSIDE = (_folder("nomicbert"), _folder("torch"))


class PromptWarning(UserWarning):
    """A checkpoint that was trained with task prefixes was given a text without one."""


class TruncationWarning(UserWarning):
    """Texts were longer than the limit and were cut."""


class WeightWarning(UserWarning):
    """A checkpoint's weights hold numbers that no model can work with."""


class EmptyRowWarning(UserWarning):
    """A row of an attention mask keeps no token, so that there is nothing to encode."""


class WorkerWarning(UserWarning):
    """One of several processes has died, and the others go on without it."""


def warn(message: str, category: type[Warning]) -> None:
    """Warn about the nearest line of the caller's code that is not in this package or torch."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(INSIDE):
        frame = frame.f_back
        level += 1
    warnings.warn(message, category, stacklevel=level)


def warn_of_cuts(cut: int, count: int, inputs: str, limit: int) -> None:
    """Warn that so many of the inputs ("texts") were longer than so many tokens, if any were."""
    if cut:
        warn(
            f"{cut} of {count} {inputs} were longer than {limit} tokens and were cut there",
            TruncationWarning,
        )
