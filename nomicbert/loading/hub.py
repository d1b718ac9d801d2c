"""Resolve a folder or repository id to a local folder. The only module that uses the network.

First step of loading: all later steps read plain files. A local folder needs neither a request nor
an import of huggingface_hub. From a repository, only the files that loading reads are fetched;
code is never among them.

Source: the cache layout (`refs`, `snapshots`) as huggingface_hub documents it; the file names as in
the repositories of the supported checkpoints.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from nomicbert.errors import HubError
from nomicbert.loading.sentence_settings import TRANSFORMER_FILES

_log = logging.getLogger(__name__)

_WEIGHTS: Final = "model.safetensors"
_INDEX: Final = "model.safetensors.index.json"
_OLD_WEIGHTS: Final = "pytorch_model.bin"
_OLD_INDEX: Final = "pytorch_model.bin.index.json"
_SETTINGS: Final = frozenset(
    {
        *TRANSFORMER_FILES,
        "README.md",  # holds the licence
        "adapter_config.json",  # names an adapter, which is refused
        "added_tokens.json",
        "config.json",
        "config_sentence_transformers.json",
        "modules.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
    }
)
_SHARD: Final = re.compile(r"model-\d+-of-\d+\.safetensors")
_OLD_SHARD: Final = re.compile(r"pytorch_model-\d+-of-\d+\.bin")
_MODULE_FILE: Final = re.compile(r"(\d+_\w+)/([\w.]+)")
_FOLDER_LOOK: Final = re.compile(r"^[./~]|^[A-Za-z]:|\\|/$")


def choose_files(names: Iterable[str]) -> list[str]:
    """Choose the files of a repository that loading reads.

    Weights come from safetensors, whole or in shards; `pytorch_model.bin` is the last resort.

    Args:
        names: every file of the repository, as paths relative to its top.
    Returns: the chosen paths, sorted; without any weights among them if the repository has none.
    """
    present = set(names)
    chosen = {name for name in present if name in _SETTINGS}
    if _WEIGHTS in present:
        chosen.add(_WEIGHTS)
    elif _INDEX in present:
        chosen.add(_INDEX)
        chosen.update(name for name in present if _SHARD.fullmatch(name))
    elif _OLD_WEIGHTS in present:
        chosen.add(_OLD_WEIGHTS)
    elif _OLD_INDEX in present:
        chosen.add(_OLD_INDEX)
        chosen.update(name for name in present if _OLD_SHARD.fullmatch(name))
    for name in present:
        match = _MODULE_FILE.fullmatch(name)
        wanted = match and match[2] in _SETTINGS | {_WEIGHTS, _OLD_WEIGHTS}
        if (
            match
            and wanted
            and (match[2] != _OLD_WEIGHTS or f"{match[1]}/{_WEIGHTS}" not in present)
        ):
            chosen.add(name)
    return sorted(chosen)


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
    """
    folder = _local_folder(path_or_repo_id)
    if folder is not None:
        return folder
    repo_id, revision = os.fspath(path_or_repo_id), revision or "main"

    # huggingface_hub offers its HTTP client here, under one name for httpx and httpx2, untyped.
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

    if local_files_only or constants.HF_HUB_OFFLINE:
        folder = _cached(repo_id, revision, cache_dir)
        if folder is None:
            raise HubError(
                f"{repo_id!r} at revision {revision!r} is not in the cache, and local_files_only "
                "or HF_HUB_OFFLINE forbids a request: fetch it once with a connection, or give a "
                "folder."
            )
        return folder
    try:
        return _fetch(repo_id, revision, cache_dir, token)
    except HubError:  # also an OSError, which a clause below would wrap again
        raise
    except httpx.TransportError as error:
        folder = _cached(repo_id, revision, cache_dir)
        if folder is None:
            raise HubError(
                f"No connection to {constants.ENDPOINT} ({error}), and {repo_id!r} at revision "
                f"{revision!r} is not in the cache: check the network, or give a folder."
            ) from None  # the traceback would be pages of HTTP client internals
        _log.warning("no connection to %s: using %s from the cache", constants.ENDPOINT, repo_id)
        return folder
    except (httpx.HTTPError, OSError, HFValidationError) as error:
        raise HubError(_explain(error, repo_id, revision)) from error


def _local_folder(asked: str | os.PathLike[str]) -> Path | None:
    """Return the folder asked for, or None if the name can only be a repository id."""
    text = os.fspath(asked)
    if not text:
        raise HubError("The name of the checkpoint is empty: give a folder or a repository id.")
    path = Path(os.path.expanduser(text))
    if path.is_dir():
        return path
    if path.exists():
        raise HubError(f"{text!r} is a file: give the folder that holds config.json and weights.")
    looks_like_path = _FOLDER_LOOK.search(text) or text.count("/") > 1
    if looks_like_path or not isinstance(asked, str):
        raise HubError(
            f"The folder {text!r} does not exist: check the path, or give a repository id such as "
            "'nomic-ai/nomic-embed-text-v1.5'."
        )
    return None


def _fetch(
    repo_id: str,
    revision: str,
    cache_dir: str | os.PathLike[str] | None,
    token: str | bool | None,
) -> Path:
    """List the repository's files, fetch those that loading reads, return the snapshot folder."""
    from huggingface_hub import HfApi, snapshot_download

    info = HfApi(token=token).model_info(repo_id, revision=revision)
    files = choose_files(sibling.rfilename for sibling in info.siblings or ())
    _require(repo_id, revision, files)
    # by name, not by info.sha: huggingface_hub then stores name -> commit, for later offline use
    return Path(
        snapshot_download(
            repo_id,
            revision=revision,
            cache_dir=None if cache_dir is None else Path(cache_dir),
            token=token,
            allow_patterns=files,
        )
    )


def _cached(repo_id: str, revision: str, cache_dir: str | os.PathLike[str] | None) -> Path | None:
    """Return the folder of a cached snapshot, or None; makes no request."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(
        repo_id,
        "config.json",
        cache_dir=None if cache_dir is None else Path(cache_dir).expanduser(),
        revision=revision,
    )
    if not isinstance(config, str):
        return None
    folder = Path(config).parent
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    _require(f"{repo_id} in the cache", revision, choose_files(names))
    return folder


def _require(repo_id: str, revision: str, files: list[str]) -> None:
    """Refuse a repository without config.json or weights."""
    if "config.json" not in files:
        raise HubError(
            f"{repo_id!r} at revision {revision!r} has no config.json: it is not a checkpoint that "
            "this package can load; check the name and the revision."
        )
    if not {_WEIGHTS, _INDEX, _OLD_WEIGHTS, _OLD_INDEX} & set(files):
        raise HubError(
            f"{repo_id!r} at revision {revision!r} has no {_WEIGHTS} and no {_OLD_WEIGHTS} at its "
            "top level: choose a repository or a revision that holds PyTorch weights."
        )


def _explain(error: Exception, repo_id: str, revision: str) -> str:
    """Return one sentence on why a request failed and what to do."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        LocalTokenNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    where = constants.ENDPOINT
    if isinstance(error, HFValidationError):
        return (
            f"{repo_id!r} is neither a folder here nor a valid repository id: give a folder, or an "
            "id such as 'nomic-ai/nomic-embed-text-v1.5'."
        )
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
            "check the spelling, and pass a token if it is private."
        )
    if isinstance(error, LocalEntryNotFoundError):
        return f"The connection to {where} broke while {repo_id!r} was fetched: try again."
    if status is not None:
        return (
            f"{where} answered {status} for {repo_id!r} at revision {revision!r}: try again later."
        )
    return f"{repo_id!r} cannot be fetched from {where} into the cache: {error}"
