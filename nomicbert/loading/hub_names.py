"""Checks of the arguments that name a checkpoint on the hub, before any request."""

from __future__ import annotations

import os
import re
from pathlib import PurePosixPath
from typing import Final

from nomicbert.errors import HubError
from nomicbert.loading.json_settings import nameable

# What git allows in the name of a branch, tag or commit.
_REVISION: Final = re.compile(r"(?!/)(?!.*\.\.)[^\0-\x20\x7f~^:?*\[\\\ud800-\udfff]+")
# Longest name of a file, in bytes, on common file systems.
_LONGEST: Final = 255


def as_name(argument: str, given: object) -> str:
    """Convert a path or an id to a string."""
    name = os.fspath(given) if isinstance(given, os.PathLike) else given
    if not isinstance(name, str):
        raise TypeError(f"{argument} must be a string or a path, not {given!r:.80}")
    return name


def shown(name: str) -> str:
    """The name as it is quoted in an error."""
    return repr(name) if len(name) <= 120 else f"{name[:100]!r}... ({len(name)} characters)"


def as_revision(revision: object) -> str:
    """Check a revision by git's rules for names; none is "main"."""
    if not isinstance(revision, str | None):
        raise TypeError(f"revision must be a string, not {revision!r:.80}")
    if not revision:
        return "main"
    if not _REVISION.fullmatch(revision) or len(os.fsencode(revision)) > _LONGEST:
        raise HubError(f"revision {shown(revision)} cannot be the name of a branch, tag or commit.")
    return revision


def as_subfolder(name: object) -> str:
    """Check a folder within a repository: "" for none, no trailing slash."""
    if not isinstance(name, str | None):
        raise TypeError(f"subfolder must be a string, not {name!r:.80}")
    plain = PurePosixPath(name or "")
    if plain.is_absolute() or ".." in plain.parts or (name and not nameable(name)):
        raise HubError(f"subfolder {shown(str(name))} is no folder within a repository.")
    return "" if plain == PurePosixPath() else plain.as_posix()


def check_token(token: object) -> None:
    """Refuse what cannot be sent, without showing it."""
    if not isinstance(token, str | bool | None):
        raise TypeError(f"token must be a string, True, False or None, not {type(token).__name__}")
    if isinstance(token, str) and not re.fullmatch(r"[!-~]*", token):
        raise HubError(
            "token has spaces, line breaks or characters that no token has: copy it again."
        )
