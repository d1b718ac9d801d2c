"""A repository's listing -> the files of it that loading reads.

Where in the flow: `hub` fetches all of them into the cache, `hub_preview` the small ones elsewhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from nomicbert.loading.hub_files import MODULES, choose_files, read_layout

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo


class Part(NamedTuple):
    """What is wanted of a repository: the encoder's folder ("": stated there), and the format."""

    subfolder: str = ""
    safetensors: bool | None = None


def list_files(
    repo_id: str, info: ModelInfo, commit: str, part: Part, **download: Any
) -> tuple[list[str], str]:
    """The files that loading reads, and the folder of the encoder ("" is the top).

    Args:
        repo_id: of the repository.
        info: its listing.
        commit: of the listing. By commit, because huggingface_hub then makes no request for what is
            in the cache.
        part: what is wanted of it.
        **download: keywords of `hf_hub_download`, which fetches modules.json: it says in which
            folders the others are.

    Raises: ConfigError: modules.json is damaged. Errors of `hf_hub_download`.
    """
    from huggingface_hub import hf_hub_download

    names = [sibling.rfilename for sibling in info.siblings or ()]
    encoder, modules = part.subfolder, list[str]()
    if MODULES in names and not encoder:
        stated = hf_hub_download(repo_id, MODULES, revision=commit, **download)
        encoder, modules = read_layout(Path(stated).parent)
    return choose_files(names, encoder, modules, part.safetensors), encoder
