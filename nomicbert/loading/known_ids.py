"""What was probably meant by the name of a checkpoint that is not there."""

import difflib
import os
import re
from pathlib import Path
from typing import Final

# The first pattern that the whole name matches, in any case, counts.
_PUBLISHERS: Final = (
    (r"nomic-(embed|bert)-.+|CodeRankEmbed", "nomic-ai"),
    (
        r"(ms-marco|quora|qnli)-.+|nli-deberta-.+|stsb-(distil)?roberta-(base|large)",
        "cross-encoder",
    ),
    (
        r"(all|multi-qa|paraphrase|msmarco|nli|stsb|gtr|sentence-t5|distiluse|use-cmlm)-.+|LaBSE"
        r"|distilbert-multilingual-nli-.+|allenai-specter",
        "sentence-transformers",
    ),
    (r"bge-.+", "BAAI"),
    (r"(multilingual-)?e5-.+", "intfloat"),
    (r"gte-(small|base|large)(-zh)?", "thenlper"),
    (r"gte-.+", "Alibaba-NLP"),
    (r"snowflake-arctic-embed-.+", "Snowflake"),
    (r"Conan-embedding-.+", "TencentBAC"),
    (r"xiaobu-embedding-.+", "lier007"),
    (r"mxbai-.+", "mixedbread-ai"),
    (r"text2vec-.+", "shibing624"),
    (r"m3e-.+", "moka-ai"),
    (r"chinese-(roberta|bert|macbert)-.+", "hfl"),
    (r"bert-(base|large)-.+", "google-bert"),
)


def full_id(name: str) -> str | None:
    """`organisation/name` of a widely used checkpoint, or None if the name is not known."""
    for pattern, publisher in _PUBLISHERS:
        if re.fullmatch(pattern, name, re.IGNORECASE):
            return f"{publisher}/{name}"
    return None


def near_folder(name: str) -> str | None:
    """The checkpoint's folder whose name is nearest to this path, or None if none is near."""
    parent, base = os.path.split(os.path.expanduser(name.rstrip("/")))
    try:
        found = [entry.name for entry in os.scandir(parent or ".") if _is_checkpoint(entry.path)]
    except (OSError, ValueError):  # no such folder, or a name that cannot be one
        return None
    near = difflib.get_close_matches(base, found, n=1)
    return os.path.join(parent, near[0]) if near else None


def _is_checkpoint(path: str) -> bool:
    return any((Path(path) / name).is_file() for name in ("config.json", "modules.json"))


def folder_advice(name: str) -> str:
    """A sentence, after a space, that names a folder with almost this name; "" if none has."""
    folder = near_folder(name)
    return "" if folder is None else f" Did you mean the folder {folder!r}?"


def advice(repo_id: str) -> str:
    """A sentence, after a space, for an id that is neither a folder nor in the cache.

    It names a folder with almost this name, or the organisation that is missing; else it is "".
    """
    folder = folder_advice(repo_id)
    if folder or "/" in repo_id:
        return folder
    full = full_id(repo_id)
    if full is None:
        return " An id is 'organisation/name', such as 'nomic-ai/nomic-embed-text-v1.5'."
    return f" Did you mean {full!r}?"
