"""Errors of the `tokenizers` library, which have no class of their own -> TokenizerError.

They are a bare Exception, or pyo3's PanicException, which is not even an Exception: code that
catches those would let it end a worker process.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from nomicbert.errors import NomicBertError, TokenizerError

Result = TypeVar("Result")


def guarded(path: Path, call: Callable[..., Result], *arguments: Any, **keywords: Any) -> Result:
    """Call something that reads the files of a tokenizer.

    Raises: TokenizerError: it names the file. MemoryError: the machine has too little memory.
    """
    try:
        return call(*arguments, **keywords)
    except (NomicBertError, MemoryError):
        raise
    except BaseException as error:
        if isinstance(error, Exception) or _is_panic(error):
            raise unusable(path, error) from error
        raise


def guarded_text(
    path: Path, call: Callable[..., Result], *arguments: Any, **keywords: Any
) -> Result:
    """Call the library with a caller's text; errors that the text has caused are left.

    Raises: TokenizerError: it names the file.
    """
    try:
        return call(*arguments, **keywords)
    except BaseException as error:
        if type(error) is Exception or _is_panic(error):
            raise unusable(path, error) from error
        raise


def unusable(path: Path, error: object) -> TokenizerError:
    """The error of a file that the library cannot work with."""
    return TokenizerError(f"{path} is not a usable tokenizer: {error!s:.300}")


def _is_panic(error: BaseException) -> bool:
    return type(error).__name__ == "PanicException"
