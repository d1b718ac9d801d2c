"""The warnings of nomicbert, and how they are given.

A warning means that the result may not be what the caller intended. Each has its own class, so that
it can be silenced or turned into an error. Decisions (backend, dtype) are logged instead.
"""

import os
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path


def _folder(package: str) -> str:
    """Folder of a package, not imported; the separator excludes packages with a longer name."""
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return str(Path(spec.origin).parent) + os.sep


# Ours, and torch's: modules are called through nn.Module.
INSIDE = (_folder("nomicbert"), _folder("torch"))


class PromptWarning(UserWarning):
    """A checkpoint that was trained with task prefixes was given a text without one."""


class ConfigWarning(UserWarning):
    """A setting is not known, is not saved, or counts here and not in transformers' own class."""


class PoolingWarning(UserWarning):
    """A checkpoint does not say how its vectors are made: an assumption was made."""


class TruncationWarning(UserWarning):
    """Texts were longer than the limit and were cut."""


class WeightWarning(UserWarning):
    """A checkpoint's weights contain NaN or infinite values."""


class VectorWarning(UserWarning):
    """Vectors or scores contain NaN or infinite values."""


class EmptyRowWarning(UserWarning):
    """A row of an attention mask keeps no token."""


class WorkerWarning(UserWarning):
    """A worker process has died; the others take over its inputs."""


def warn(message: str, category: type[Warning]) -> None:
    """Warn at the nearest stack frame outside of this package and torch."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(INSIDE):
        frame = frame.f_back
        level += 1
    warnings.warn(message, category, stacklevel=level)


def warn_of_cuts(cut: int, count: int, inputs: str, limit: int) -> None:
    """Warn that `cut` of `count` inputs ("texts" or "pairs") were longer than `limit` tokens."""
    if cut:
        warn(
            f"{cut} of {count} {inputs} were longer than {limit} tokens and were cut there",
            TruncationWarning,
        )
