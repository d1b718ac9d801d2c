"""The errors of object stores -> ValueError if the user can correct them, OSError if not.

Where in the flow: around each request of `stores` and `job.remote_folder`. pyarrow raises OSError
with the store's code in its text; below fsspec each client has errors of its own.
"""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

_PASSWORD = re.compile(r"//([^/@:]*):[^/@]*@")
_MISSING = re.compile(
    r"NO_SUCH_(BUCKET|KEY|UPLOAD)|RESOURCE_NOT_FOUND|\bNOT_FOUND\b|ContainerNotFound"
)
_DENIED = re.compile(
    "ACCESS_DENIED|INVALID_ACCESS_KEY|SIGNATURE_DOES_NOT_MATCH|EXPIRED_TOKEN|INVALID_TOKEN|"
    "INVALID_CLIENT_TOKEN|MISSING_AUTHENTICATION|UNRECOGNIZED_CLIENT|PERMISSION_DENIED|"
    "UNAUTHENTICATED|AuthenticationFailed|AuthorizationFailure|(HTTP status|status code):? 40[13]"
)


@contextmanager
def store_errors(doing: str) -> Iterator[None]:
    """Turn a store's errors into ValueError if the user can correct them, else OSError.

    `doing` is the message's beginning: "cannot read NAME".
    """
    try:
        yield
    except (ImportError, MemoryError):
        raise
    except Exception as raised:  # below fsspec each client has errors of its own
        error = reason_of(raised)
        text = " ".join(hide_password(str(error) or type(error).__name__).split())[:500]
        status = getattr(error, "status", None)  # of aiohttp
        if isinstance(error, FileNotFoundError) or _MISSING.search(text):
            raise ValueError(f"{doing}: it does not exist ({text})") from error
        if isinstance(error, PermissionError) or status in (401, 403) or _DENIED.search(text):
            advice = "access is denied; check the credentials and permissions"
            raise ValueError(f"{doing}: {advice} ({text})") from error
        correctable = (ValueError, IsADirectoryError, NotADirectoryError)
        if isinstance(error, correctable):
            raise ValueError(f"{doing}: {text}") from error
        raise OSError(getattr(error, "errno", None) or errno.EIO, f"{doing}: {text}") from error


def reason_of(error: BaseException) -> BaseException:
    """What happened: fsspec's HTTP client reports a host that is not reached as a missing file."""
    cause = error.__cause__
    if not isinstance(error, FileNotFoundError) or isinstance(cause, FileNotFoundError):
        return error
    is_other = isinstance(cause, OSError) or getattr(cause, "status", 404) != 404
    return cause if cause is not None and is_other else error


def hide_password(text: str) -> str:
    """URLs in a text without their passwords."""
    return _PASSWORD.sub(r"//\1@", text)
