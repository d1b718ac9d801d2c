"""Workloads of the benchmark: texts with known tokenisation and lengths typical of services.

Lengths include special tokens. Texts consist of whole words, or Chinese characters, that are one
token each in the checkpoint's tokenizer. Each text is tokenised again to check its ids.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from nomicbert.text.tokenizer import Tokenizer

FIXED = (16, 32, 128, 512, 2048, 8192)
LATENCY = (8, 16, 32, 64, 128)
QUERIES, PASSAGES, DOCUMENTS = (3, 20), (16, 256), (512, 2048)
LONG_DOCUMENTS = (512, 8192)
MEAN_QUERY, MEAN_PASSAGE, SPREAD = 8, 70, 0.6
SHARES = {"queries": 0.1, "passages": 0.6, "documents": 0.3}
NAMES = (
    *(f"fixed-{length}" for length in FIXED),
    "passages",
    "queries",
    "mixture",
    *(f"latency-{length}" for length in LATENCY),
)
MOST_WORDS = 4096
CHINESE = ("\u4e00", "\u9fff")


@dataclass(frozen=True)
class Case:
    """Texts to embed.

    Attributes:
        name: one of NAMES.
        ids: token ids of each text, special ones included.
        texts: the same as strings, in the same order.
        kinds: name -> tokens, if a case mixes several kinds of texts.
    """

    name: str
    ids: list[list[int]]
    texts: list[str]
    kinds: dict[str, int] = field(default_factory=dict)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each text."""
        return [len(text) for text in self.ids]

    @property
    def tokens(self) -> int:
        """Tokens of all texts; padding does not count."""
        return sum(self.lengths)

    @property
    def is_latency(self) -> bool:
        """Whether the case measures the latency of a single text."""
        return self.name.startswith("latency-")


@dataclass(frozen=True)
class Words:
    """Pieces of text that are one token each.

    Attributes:
        pieces: text of each.
        ids: token id of each.
        between: separator of pieces.
    """

    pieces: list[str]
    ids: list[int]
    between: str

    @classmethod
    def of(cls, tokenizer: Tokenizer, seed: int = 0) -> "Words":
        """English words or Chinese characters of a vocabulary, whichever are more numerous.

        Raises: ValueError: it has neither.
        """
        entries = {entry.removeprefix("\u2581") for entry in tokenizer.rust.get_vocab()}
        chinese = sorted(e for e in entries if len(e) == 1 and CHINESE[0] <= e <= CHINESE[1])
        english = sorted(e for e in entries if e.isascii() and e.isalpha() and e.islower())
        whole = [word for word in english if len(word) > 2]
        chosen, between = (chinese, "") if len(chinese) > len(whole) else (whole or english, " ")
        order = np.random.default_rng(seed).permutation(len(chosen))
        tried = [chosen[i] for i in order[: 2 * MOST_WORDS]]
        found = [
            (piece, ids[0])
            for piece, ids in zip(tried, _bodies(tokenizer, tried), strict=True)
            if len(ids) == 1
        ][:MOST_WORDS]
        if not found:
            raise ValueError(
                "cannot draw texts: the tokenizer has no English word and no Chinese character "
                "that is a single token"
            )
        return cls([piece for piece, _ in found], [number for _, number in found], between)


def draw(
    name: str,
    tokenizer: Tokenizer,
    tokens: int,
    *,
    longest: int,
    long_documents: bool = False,
    seed: int = 0,
) -> Case | None:
    """Draw a case.

    Args:
        name: one of NAMES.
        tokenizer: of the checkpoint.
        tokens: total of the case; it has at least one text, which is never cut to fit.
        longest: the checkpoint's limit of tokens per text.
        long_documents: draw documents of up to 8192 tokens, for a GPU.
        seed: of the random texts.

    Returns: the case, or None if its texts would be longer than the checkpoint allows.
    Raises: ValueError: an unknown name; a tokenizer without whole words.
    """
    if name not in NAMES:
        raise ValueError(f"unknown case {name!r}: it must be one of {', '.join(NAMES)}")
    if shortest(name) > longest:
        return None
    rng = np.random.default_rng([seed, NAMES.index(name)])
    kinds = {name: lengths_of(name, tokens, rng, longest, long_documents)}
    if name == "mixture":
        kinds = {
            kind: lengths_of(kind, round(share * tokens), rng, longest, long_documents)
            for kind, share in SHARES.items()
        }
    lengths = [length for kind in kinds.values() for length in kind]
    # shuffled, because services do not receive sorted texts
    lengths = [lengths[i] for i in rng.permutation(len(lengths))]
    words = Words.of(tokenizer, seed)
    special = len(tokenizer.prefix) + len(tokenizer.suffix)
    ids, texts = [], []
    for length in lengths:
        chosen = rng.integers(0, len(words.ids), length - special)
        texts.append(words.between.join(words.pieces[i] for i in chosen))
        ids.append([*tokenizer.prefix, *(words.ids[i] for i in chosen), *tokenizer.suffix])
    if tokenizer.encode(texts, longest)[0] != ids:
        raise ValueError(
            f"case {name}: the tokenizer splits joined words differently from single words"
        )
    shares = {kind: sum(found) for kind, found in kinds.items()}
    return Case(name, ids, texts, shares if len(shares) > 1 else {})


def shortest(name: str) -> int:
    """The lowest length limit of a checkpoint that a case can be drawn for.

    A mixture needs the limit of its passages.
    """
    size = name.partition("-")[2]
    return int(size) if size else QUERIES[0] if name == "queries" else PASSAGES[0]


def lengths_of(
    kind: str, tokens: int, rng: np.random.Generator, longest: int, long_documents: bool = False
) -> list[int]:
    """Lengths of texts of one kind that add up to `tokens`; the last takes the rest.

    If the rest is below the kind's minimum, it is added to the previous text if that fits. If
    `longest` is below the minimum of documents, they are drawn like passages.

    Raises: ValueError: `longest` is below the minimum of another kind.
    """
    family, _, size = kind.partition("-")
    if family == "latency":
        return [int(size)]
    if family == "fixed":
        return [int(size)] * max(1, tokens // int(size))
    limits = {
        "queries": QUERIES,
        "passages": PASSAGES,
        "documents": LONG_DOCUMENTS if long_documents else DOCUMENTS,
    }
    if kind not in limits:
        return []
    least, most = limits[kind]
    most = min(most, longest)
    if most < least:
        if kind == "documents":
            return lengths_of("passages", tokens, rng, longest)
        raise ValueError(f"{kind} have at least {least} tokens: a limit of {longest} is too low")
    found: list[int] = []
    left = tokens
    while left > 0:
        length = min(left, most, max(least, _draw_length(kind, least, most, rng)))
        if length < least and found and found[-1] + length <= most:
            found[-1] += length
        else:
            found.append(max(length, QUERIES[0]))
        left -= length
    return found


def _draw_length(kind: str, least: int, most: int, rng: np.random.Generator) -> int:
    if kind == "queries":
        return least + int(rng.poisson(MEAN_QUERY - least))
    if kind == "passages":
        # the mean of a log-normal is exp(mu + sigma^2 / 2)
        return round(rng.lognormal(math.log(MEAN_PASSAGE) - SPREAD**2 / 2, SPREAD))
    return round(math.exp(rng.uniform(math.log(least), math.log(most))))


def _bodies(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Ids of each text between its special tokens."""
    start, end = len(tokenizer.prefix), len(tokenizer.suffix)
    encoded, _ = tokenizer.encode(texts, 64)
    return [ids[start : len(ids) - end] for ids in encoded]
