"""The errors of nomicbert: one tree, so that a caller can catch all of it or one branch.

    NomicBertError
    ├── ConfigError      config.json or another settings file is missing, unreadable or unsupported
    ├── CheckpointError  weights are missing, damaged, or do not fit the model
    ├── HubError         a folder or repository cannot be found or reached
    ├── TokenizerError   the tokenizer's files are missing or do not fit the model
    ├── AccuracyError    a faster arithmetic moves this checkpoint's vectors too far
    ├── BackendError     the backend asked for cannot run here
    ├── TextError        one of the texts cannot be embedded as asked
    └── WorkerError      of several processes, those that should compute have died

A wrong argument of a call is a plain ValueError or TypeError, as anywhere in Python.
"""


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
    """A faster arithmetic moves this checkpoint's vectors too far from those without it."""


class BackendError(NomicBertError, RuntimeError):
    """The backend asked for cannot run here; what the kernels raised, if they did, is the cause."""


class TextError(NomicBertError, ValueError):
    """One of the texts cannot be embedded as asked.

    Attributes:
        index: of the text among the inputs, from 0.
        problem: what it is or does, and what to do.
    """

    def __init__(self, index: int, problem: str) -> None:
        """The message begins with the index."""
        super().__init__(f"input {index} {problem}")
        self.index = index
        self.problem = problem

    def __reduce__(self) -> "tuple[type[TextError], tuple[int, str]]":
        """As it is made, so that it can come from another process."""
        return type(self), (self.index, self.problem)


class WorkerError(NomicBertError, RuntimeError):
    """Processes that should embed texts have died; or, as a cause, what one of them raised."""
