"""Resolve a folder or repository id to a local folder. The only module that uses the network.

First step of loading: all later steps read plain files. A local folder needs neither a request nor
an import of huggingface_hub. From a repository, only the files that loading reads are fetched
(`hub_files`): modules.json first, which says in which folders they are. Code is never among them.

Source: the cache layout (`refs`, `snapshots`) as huggingface_hub documents it.
"""

from __future__ import annotations

import logging
import os
import re
import stat
from glob import escape
from pathlib import Path
from typing import Final

from nomicbert.errors import HubError
from nomicbert.loading.hub_files import MODULES, choose_files, lacks, read_layout
from nomicbert.loading.known_ids import advice

_log = logging.getLogger(__name__)

_FOLDER_LOOK: Final = re.compile(r"^[./~]|^[A-Za-z]:|\\|/$")
# What git allows in the name of a branch, tag or commit.
_REVISION: Final = re.compile(r"(?!/)(?!.*\.\.)[^\0-\x20\x7f~^:?*\[\\\ud800-\udfff]+")
# Longest name of a file, in bytes, on common file systems.
_LONGEST: Final = 255


def resolve(
    path_or_repo_id: str | os.PathLike[str],
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> Path:
    """Find the local folder that holds a checkpoint, fetching it first where that is needed.

    Without a connection, a copy that was fetched earlier is used, and a warning is logged.

    Args:
        path_or_repo_id: a folder, or the id of a repository ("nomic-ai/nomic-embed-text-v1.5").
        revision: branch, tag or commit; None is "main". Ignored for a folder.
        cache_dir: where fetched files are kept; None is the cache of huggingface_hub.
        token: access token; None is the stored login, False sends no token.
        local_files_only: use only files in the cache and make no request (as HF_HUB_OFFLINE=1).
    Returns: the folder. From a repository, it is checked to hold config.json and weights.
    Raises: HubError: the folder, repository or revision does not exist or cannot be reached.
        ConfigError: the repository's modules.json is damaged. TypeError: not a name.
    """
    name = _as_name("path_or_repo_id", path_or_repo_id)
    folder = _local_folder(name, isinstance(path_or_repo_id, str))
    if folder is not None:
        return folder
    repo_id, revision = name, _as_revision(revision)
    check_token(token)
    cache = None if cache_dir is None else _as_cache(_as_name("cache_dir", cache_dir))

    # huggingface_hub offers its HTTP client here, under one name for httpx and httpx2, untyped.
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import httpx, validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise HubError(
            f"{shown(repo_id)} is neither a folder here nor a valid repository id: give a "
            "folder, or an id such as 'nomic-ai/nomic-embed-text-v1.5'."
        ) from error
    if local_files_only or constants.HF_HUB_OFFLINE:
        folder = _cached(repo_id, revision, cache)
        if folder is None:
            raise HubError(
                f"{repo_id!r} at revision {revision!r} is not in the cache, and local_files_only "
                "or HF_HUB_OFFLINE forbids a request: fetch it once with a connection, or give a "
                f"folder.{advice(repo_id)}"
            )
        return folder
    try:
        return _fetch(repo_id, revision, cache, token)
    except HubError:  # also an OSError, which a clause below would wrap again
        raise
    except httpx.TransportError as error:
        folder = _cached(repo_id, revision, cache)
        if folder is None:
            raise HubError(
                f"No connection to {constants.ENDPOINT} ({error}), and {repo_id!r} at revision "
                f"{revision!r} is not in the cache: check the network, or give a folder."
                f"{advice(repo_id)}"
            ) from None  # the traceback would be pages of HTTP client internals
        _log.warning("no connection to %s: using %s from the cache", constants.ENDPOINT, repo_id)
        return folder
    except (httpx.HTTPError, OSError) as error:
        raise HubError(_explain(error, repo_id, revision)) from error


def _as_name(argument: str, given: object) -> str:
    """Convert a path or an id to a string."""
    name = os.fspath(given) if isinstance(given, os.PathLike) else given
    if not isinstance(name, str):
        raise TypeError(f"{argument} must be a string or a path, not {given!r:.80}")
    return name


def shown(name: str) -> str:
    """The name as it is quoted in an error."""
    return repr(name) if len(name) <= 120 else f"{name[:100]!r}... ({len(name)} characters)"


def _stat(what: str, name: str) -> tuple[Path, os.stat_result | None]:
    """The path of this name, and what is there: None for nothing."""
    try:
        path = Path(os.path.expanduser(name))
        return path, os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return path, None
    except (OSError, ValueError) as error:  # ValueError: NUL or half of a surrogate pair
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise HubError(f"{what} {shown(name)} cannot be opened: {why}") from error


def _local_folder(name: str, may_be_id: bool) -> Path | None:
    """Return the folder of this name, or None if it can only be a repository id."""
    if not name:
        raise HubError("The name of the checkpoint is empty: give a folder or a repository id.")
    path, found = _stat("The checkpoint", name)
    if found is not None and not stat.S_ISDIR(found.st_mode):
        raise HubError(f"{name!r} is a file: give the folder that holds config.json and weights.")
    if found is not None:
        if not os.access(path, os.R_OK | os.X_OK):
            raise HubError(f"The folder {name!r} cannot be read: permission denied.")
        return path
    if _FOLDER_LOOK.search(name) or name.count("/") > 1 or not may_be_id:
        raise HubError(
            f"The folder {shown(name)} does not exist: check the path, or give a repository id "
            "such as 'nomic-ai/nomic-embed-text-v1.5'."
        )
    return None


def _as_revision(revision: object) -> str:
    """Check a revision by git's rules for names; none is "main"."""
    if not isinstance(revision, str | None):
        raise TypeError(f"revision must be a string, not {revision!r:.80}")
    if not revision:
        return "main"
    if not _REVISION.fullmatch(revision) or len(os.fsencode(revision)) > _LONGEST:
        raise HubError(f"revision {shown(revision)} cannot be the name of a branch, tag or commit.")
    return revision


def _as_cache(name: str) -> Path:
    """The folder of the cache, which need not exist yet."""
    return _stat("cache_dir", name)[0]


def check_token(token: object) -> None:
    """Refuse what cannot be sent, without showing it."""
    if not isinstance(token, str | bool | None):
        raise TypeError(f"token must be a string, True, False or None, not {type(token).__name__}")
    if isinstance(token, str) and not re.fullmatch(r"[!-~]*", token):
        raise HubError(
            "token has spaces, line breaks or characters that no token has: copy it again."
        )


def _fetch(repo_id: str, revision: str, cache: Path | None, token: str | bool | None) -> Path:
    """List the repository's files, fetch those that loading reads, return the snapshot folder."""
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download

    info = HfApi(token=token).model_info(repo_id, revision=revision)
    names = [sibling.rfilename for sibling in info.siblings or ()]
    encoder, modules = "", list[str]()
    if MODULES in names:
        # by commit: once it is in the cache, huggingface_hub makes no request for it
        commit = info.sha or revision
        stated = hf_hub_download(repo_id, MODULES, revision=commit, cache_dir=cache, token=token)
        encoder, modules = read_layout(Path(stated).parent)
    files = choose_files(names, encoder, modules)
    _require(repo_id, revision, files, encoder)
    # by name, not by info.sha: huggingface_hub then stores name -> commit, for later offline use
    folder = Path(
        snapshot_download(
            repo_id,
            revision=revision,
            cache_dir=cache,
            token=token,
            allow_patterns=[escape(name) for name in files],
        )
    )
    # where the repository cannot be listed, it returns what an earlier call has left there
    if not all((folder / name).is_file() for name in files):
        raise HubError(_broke(repo_id))
    return folder


def _broke(repo_id: str) -> str:
    from huggingface_hub import constants

    return f"The connection to {constants.ENDPOINT} broke while {repo_id!r} was fetched: try again."


def _cached(repo_id: str, revision: str, cache: Path | None) -> Path | None:
    """Return the folder of a cached snapshot, or None; makes no request."""
    from huggingface_hub import try_to_load_from_cache

    for name in (MODULES, "config.json"):
        found = try_to_load_from_cache(repo_id, name, cache_dir=cache, revision=revision)
        if isinstance(found, str):
            break
    else:
        return None
    folder = Path(found).parent
    encoder, modules = read_layout(folder)
    if not (folder / encoder / "config.json").is_file():
        return None  # the download was broken off
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    files = choose_files(names, encoder, modules)
    _require(f"{repo_id} in the cache", revision, files, encoder)
    return folder


def _require(repo_id: str, revision: str, files: list[str], encoder: str) -> None:
    """Refuse a repository whose encoder lacks config.json or weights."""
    if missing := lacks(files, encoder):
        raise HubError(
            f"{repo_id!r} at revision {revision!r} has no {missing}: it is not a checkpoint that "
            "this package can load; choose a repository or a revision with PyTorch weights."
        )


def _explain(error: Exception, repo_id: str, revision: str) -> str:
    """Return one sentence on why a request failed and what to do."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        LocalTokenNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    where = constants.ENDPOINT
    if isinstance(error, LocalTokenNotFoundError):
        return "token=True asks for the stored login, and there is none: log in, or pass the token."
    if isinstance(error, GatedRepoError):
        return (
            f"{repo_id!r} is gated: ask for access at {where}/{repo_id}, then pass a token of an "
            "account that has it."
        )
    if isinstance(error, RevisionNotFoundError):
        return (
            f"{repo_id!r} has no revision {revision!r}: give one of its branches, tags or commits."
        )
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if isinstance(error, RepositoryNotFoundError) or status in (401, 403):
        return (
            f"No readable repository {repo_id!r} at {where}, and no folder of that name: "
            f"check the spelling, and pass a token if it is private.{advice(repo_id)}"
        )
    if isinstance(error, LocalEntryNotFoundError):
        return _broke(repo_id)
    if status is not None:
        return (
            f"{where} answered {status} for {repo_id!r} at revision {revision!r}: try again later."
        )
    return f"{repo_id!r} cannot be fetched from {where} into the cache: {error}"
