"""Resolve a folder or repository id to a local folder. Only this module and `hub_preview` fetch.

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
from typing import Any, Final

from nomicbert.errors import ConfigError, HubError
from nomicbert.loading.hub_files import MODULES, choose_files, lacks, read_layout
from nomicbert.loading.hub_listing import Part, list_files
from nomicbert.loading.hub_names import as_name, as_revision, as_subfolder, check_token, shown
from nomicbert.loading.known_ids import advice, folder_advice
from nomicbert.loading.plain_files import check_file

_log = logging.getLogger(__name__)

_FOLDER_LOOK: Final = re.compile(r"^[./~]|^[A-Za-z]:|\\|/$")


def resolve(
    path_or_repo_id: str | os.PathLike[str],
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    subfolder: str = "",
    force_download: bool = False,
    use_safetensors: bool | None = None,
) -> Path:
    """Find the local folder that holds a checkpoint, fetching it first where that is needed.

    Without a connection, a copy that was fetched earlier is used, and a warning is logged.

    Args:
        path_or_repo_id: a folder, or the id of a repository ("nomic-ai/nomic-embed-text-v1.5").
        revision: branch, tag or commit; None is "main". Ignored for a folder.
        cache_dir: where fetched files are kept; None is the cache of huggingface_hub.
        token: access token; None is the stored login, False sends no token.
        local_files_only: use only files in the cache and make no request (as HF_HUB_OFFLINE=1).
        subfolder: the folder of the encoder within the folder or repository, which needs no
            modules.json then; "" takes the top, or what modules.json says.
        force_download: fetch the files of a repository again. Ignored for a folder.
        use_safetensors: True fetches no .bin, False no safetensors; None prefers safetensors.
    Returns: the folder. From a repository, it is checked to hold config.json and weights.
    Raises: HubError: the folder, repository or revision does not exist or cannot be reached.
        ConfigError: the repository's modules.json is damaged. TypeError: not a name.
    """
    name = as_name("path_or_repo_id", path_or_repo_id)
    part = Part(as_subfolder(subfolder), use_safetensors)
    folder = _local_folder(name, isinstance(path_or_repo_id, str))
    if folder is not None:
        if part.subfolder and not (folder / part.subfolder).is_dir():
            raise HubError(f"The folder {name!r} holds no folder {subfolder!r}: check subfolder.")
        return folder / part.subfolder
    repo_id, revision = name, as_revision(revision)
    check_token(token)
    named = None if cache_dir is None else as_name("cache_dir", cache_dir)
    cache = None if named is None else _stat("cache_dir", named)[0]  # need not exist yet

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
        if force_download:
            raise HubError(
                "force_download needs a request, which local_files_only or HF_HUB_OFFLINE forbids: "
                "leave one of them out."
            )
        folder = _cached(repo_id, revision, cache, part)
        if folder is None:
            raise HubError(
                f"{repo_id!r} at revision {revision!r} is not in the cache, and local_files_only "
                "or HF_HUB_OFFLINE forbids a request: fetch it once with a connection, or give a "
                f"folder.{advice(repo_id)}"
            )
        return folder
    try:
        return _fetch(repo_id, revision, cache, token, part, force_download)
    except HubError:  # also an OSError, which a clause below would wrap again
        raise
    except httpx.TransportError as error:
        folder = None if force_download else _cached(repo_id, revision, cache, part)
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
            f"such as 'nomic-ai/nomic-embed-text-v1.5'.{folder_advice(name)}"
        )
    return None


def refuse_other_folder(name: str) -> None:
    """Refuse a folder that holds no checkpoint, before anything slow is imported.

    Args:
        name: a folder, or the id of a repository, which is not looked for.

    Raises: HubError: a path that is none. ConfigError: the folder has no config.json.
    """
    folder = _local_folder(name, may_be_id=True)
    if folder is not None and not (folder / MODULES).exists():
        check_file(folder / "config.json", None, ConfigError)


def is_folder(name: str | os.PathLike[str]) -> bool:
    """Whether this names a folder here, or can only be the name of one that is not there."""
    try:
        return _local_folder(as_name("name", name), isinstance(name, str)) is not None
    except HubError:
        return True  # `resolve` explains it


def in_cache(repo_id: str, commit: str) -> bool:
    """Whether this commit of a repository has been fetched."""
    try:
        return _cached(repo_id, commit, None, Part()) is not None
    except HubError:  # without weights
        return False


def _fetch(
    repo_id: str,
    revision: str,
    cache: Path | None,
    token: str | bool | None,
    part: Part,
    force: bool,
) -> Path:
    """List the repository's files, fetch those that loading reads, return the snapshot folder."""
    from huggingface_hub import HfApi, snapshot_download

    info = HfApi(token=token).model_info(repo_id, revision=revision)
    into: dict[str, Any] = {"cache_dir": cache, "token": token, "force_download": force}
    files, encoder = list_files(repo_id, info, info.sha or revision, part, **into)
    _require(repo_id, revision, files, encoder, part)
    # by name, not by info.sha: huggingface_hub then stores name -> commit, for later offline use
    patterns = [escape(name) for name in files]
    found = snapshot_download(repo_id, revision=revision, allow_patterns=patterns, **into)
    folder = Path(found)
    # where the repository cannot be listed, it returns what an earlier call has left there
    if not all((folder / name).is_file() for name in files):
        raise HubError(_broke(repo_id))
    return folder / part.subfolder


def _broke(repo_id: str) -> str:
    from huggingface_hub import constants

    return f"The connection to {constants.ENDPOINT} broke while {repo_id!r} was fetched: try again."


def _cached(repo_id: str, revision: str, cache: Path | None, part: Part) -> Path | None:
    """Return the folder of a cached snapshot, or None; makes no request."""
    from huggingface_hub import try_to_load_from_cache

    at = f"{part.subfolder}/" if part.subfolder else ""
    for name in (f"{at}config.json",) if at else (MODULES, "config.json"):
        found = try_to_load_from_cache(repo_id, name, cache_dir=cache, revision=revision)
        if isinstance(found, str):
            break
    else:
        return None
    folder = Path(found).parents[name.count("/")]
    encoder, modules = (part.subfolder, list[str]()) if at else read_layout(folder)
    if not (folder / encoder / "config.json").is_file():
        return None  # the download was broken off
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    files = choose_files(names, encoder, modules, part.safetensors)
    _require(f"{repo_id} in the cache", revision, files, encoder, part)
    return folder / part.subfolder


def _require(repo_id: str, revision: str, files: list[str], encoder: str, part: Part) -> None:
    """Refuse a repository whose encoder lacks config.json or weights."""
    if missing := lacks(files, encoder, bool(part.subfolder)):
        if part.safetensors is not None:
            missing += f", and use_safetensors is {part.safetensors}"
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
