"""The errors of nomicbert: one tree, so that a caller can catch all of it or one branch.

    NomicBertError
    ├── ConfigError      config.json or another settings file is missing, unreadable or unsupported
    ├── CheckpointError  weights are missing, damaged, or do not fit the model
    ├── HubError         a folder or repository cannot be found or reached
    ├── TokenizerError   the tokenizer's files are missing or do not fit the model
    ├── AccuracyError    a lower-precision backend moves this checkpoint's vectors too far
    ├── BackendError     the requested backend cannot run here
    ├── ExportError      a model cannot be exported, or its export does not give its results
    ├── TextError        one of the texts cannot be embedded as asked
    └── WorkerError      all worker processes have died, or one chunk of inputs kills them

A wrong argument of a call is a plain ValueError or TypeError, as anywhere in Python. A library that
is not installed is an ImportError, whose message ends in the command of `to_install`.
"""

import re
from importlib import metadata
from pathlib import Path


def to_install(extra: str) -> str:
    """The command that installs the packages of an extra: from this clone, or else by their names.

    An installed package does not know where it came from, so the name of the extra would not do.
    """
    clone = Path(__file__).parents[1]
    if (clone / "pyproject.toml").is_file():
        return f'pip install "{clone}[{extra}]"'
    stated = [line.partition(";") for line in metadata.requires("nomicbert") or ()]
    wanted = re.compile(rf"""extra == ["']{re.escape(extra)}["']""")
    packages = [name.strip() for name, _, condition in stated if wanted.search(condition)]
    return " ".join(["pip install", *(f'"{name}"' for name in packages)])


class NomicBertError(Exception):
    """Root of every error that this package defines."""


class ConfigError(NomicBertError, ValueError):
    """A settings file is missing, unreadable, contradictory or asks for the unsupported."""


class CheckpointError(NomicBertError, ValueError):
    """The weights are missing, damaged, or do not fit the configuration."""


class HubError(NomicBertError, OSError):
    """A folder or a repository does not exist or cannot be reached."""


class TokenizerError(NomicBertError, ValueError):
    """The tokenizer's files are missing, unreadable, or do not fit the model."""


class AccuracyError(NomicBertError, ValueError):
    """A lower-precision backend moves this checkpoint's vectors too far."""


class BackendError(NomicBertError, RuntimeError):
    """The requested backend cannot run here; an error of the kernels is kept as the cause."""


class ExportError(NomicBertError, ValueError):
    """A model cannot be exported, or its export does not give the model's results."""


class TextError(NomicBertError, ValueError):
    """One of the texts cannot be embedded as asked.

    Attributes:
        index: position of the text among the inputs, from 0.
        problem: what is wrong with it, and what to do.
    """

    def __init__(self, index: int, problem: str) -> None:
        """Start the message with the index."""
        super().__init__(f"input {index} {problem}")
        self.index = index
        self.problem = problem

    def __reduce__(self) -> "tuple[type[TextError], tuple[int, str]]":
        """Pickle both arguments, so that the error can cross processes."""
        return type(self), (self.index, self.problem)


class WorkerError(NomicBertError, RuntimeError):
    """Worker processes have died; as a cause of another error, the traceback of a worker."""
