"""A repository's settings and the headers of its weights, without its weights.

Where in the flow: in place of `hub.resolve` for `describe`, which reads no values. A weight file of
the encoder becomes a file of its full size that holds its header and nothing else, so the same code
reads it: a sparse file, which takes no room on the disk. All is fetched into a folder of the
caller's, not into the cache, where half a checkpoint would look like a broken download.

Source: huggingface/safetensors, "Format": the length of the header in 8 bytes, the header, values.
"""

from __future__ import annotations

import logging
import os
from glob import escape
from pathlib import Path

from nomicbert.loading import hub
from nomicbert.loading.hub_files import lacks
from nomicbert.loading.hub_listing import Part, list_files
from nomicbert.loading.hub_names import as_name, as_revision

_log = logging.getLogger(__name__)

# Bytes asked for first: the headers of the supported checkpoints have 10 to 60 KB.
FIRST = 1 << 17
# The longest header that the format allows.
LONGEST = 100_000_000


def preview(
    path_or_repo_id: str | os.PathLike[str], revision: str | None, into: Path
) -> Path | None:
    """Fetch the settings and headers of a repository that is not in the cache.

    Args:
        path_or_repo_id: a folder, or the id of a repository.
        revision: branch, tag or commit; None is "main".
        into: an empty folder.

    Returns: `into`; or None where `hub.resolve` has to do it: for a folder, a copy in the cache,
        weights that are not safetensors, without a connection, and for what it refuses.
    """
    if hub.is_folder(path_or_repo_id):
        return None
    repo_id, revision = as_name("path_or_repo_id", path_or_repo_id), as_revision(revision)

    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

    if constants.HF_HUB_OFFLINE:
        return None
    try:
        info = HfApi().model_info(repo_id, revision=revision)
        if info.sha is None or hub.in_cache(repo_id, info.sha):
            return None
        files, encoder = list_files(repo_id, info, info.sha, Part(), local_dir=into)
        at = f"{encoder}/" if encoder else ""
        weights = [n for n in files if n.startswith(f"{at}model") and n.endswith(".safetensors")]
        if lacks(files, encoder) or not weights:
            return None
        small = [name for name in files if name not in weights]
        patterns = list(map(escape, small))
        snapshot_download(repo_id, revision=info.sha, local_dir=into, allow_patterns=patterns)
    except (HFValidationError, httpx.HTTPError, OSError):
        return None  # `resolve` meets the same and explains it
    try:
        for name in weights:
            _fetch_header(repo_id, info.sha, name, into / name)
    except (httpx.HTTPError, OSError) as error:
        _log.warning("%s: no header of %s (%s): fetching all its files", repo_id, name, error)
        return None
    return into


def _fetch_header(repo_id: str, commit: str, name: str, file: Path) -> None:
    """Write a file of the size of a safetensors file, with its header.

    Raises: OSError: it is none.
    """
    head, size = _first_bytes(repo_id, commit, name, FIRST)
    length = 8 + int.from_bytes(head[:8], "little")
    if length > min(size, LONGEST):
        raise OSError("its first bytes are none")
    if length > len(head):
        head, _ = _first_bytes(repo_id, commit, name, length)
    with file.open("wb") as opened:
        opened.write(head[:length])
        opened.truncate(size)


def _first_bytes(repo_id: str, commit: str, name: str, count: int) -> tuple[bytes, int]:
    """The first bytes of a file, and its size.

    Raises: OSError: the answer does not say it. httpx.HTTPError.
    """
    from huggingface_hub import constants, get_session, hf_hub_url
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        build_hf_headers,
        hf_raise_for_status,
    )

    url = hf_hub_url(repo_id, name, revision=commit)
    headers = {**build_hf_headers(), "Range": f"bytes=0-{count - 1}", "Accept-Encoding": "identity"}
    found = b""
    wait = constants.HF_HUB_DOWNLOAD_TIMEOUT
    # where it is redirected to another host, the client leaves the token out
    with get_session().stream(
        "GET", url, headers=headers, follow_redirects=True, timeout=wait
    ) as answer:
        hf_raise_for_status(answer)
        stated = answer.headers.get("Content-Range", "").rpartition("/")[2]
        stated = stated or answer.headers.get("Content-Length", "")
        if not stated.isdecimal():
            raise OSError(f"the size of {name} is not known")
        size = int(stated)
        for block in answer.iter_bytes():  # a server without ranges sends everything
            found += block
            if len(found) >= min(count, size):
                break
    return found, size
