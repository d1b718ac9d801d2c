"""The organisation that publishes a checkpoint, for an id that was given without it."""

import re
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


def advice(repo_id: str) -> str:
    """A sentence, after a space, for an id without its organisation; "" for any other id."""
    if "/" in repo_id:
        return ""
    full = full_id(repo_id)
    if full is None:
        return " An id is 'organisation/name', such as 'nomic-ai/nomic-embed-text-v1.5'."
    return f" Did you mean {full!r}?"
