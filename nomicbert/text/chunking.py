"""A long text -> chunks: ranges of its token ids, and the characters that they come from.

A chunk ends between two words, unless a single word does not fit.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nomicbert.text.library_errors import guarded_text
from nomicbert.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Chunked:
    """The token ids of a text, and its chunks.

    Attributes:
        head: special token ids before the text, and those of the prompt.
        ids: of the text.
        tail: special token ids after it.
        chunks: ranges of `ids`; a text without tokens has one, which is empty.
        characters: (start, end) of each chunk in the text, without white space at its ends.
    """

    head: list[int]
    ids: list[int]
    tail: list[int]
    chunks: list[range]
    characters: list[tuple[int, int]]


def chunked(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    prompt: str,
    tokens: int,
    overlap: int = 0,
    limit: int | None = None,
) -> list[Chunked]:
    """Tokenise whole texts and cut them into chunks.

    Args:
        tokenizer: of the checkpoint.
        texts: any number, without the prompt.
        prompt: put before each text when it is tokenised; no part of any chunk. A token that spans
            its end and the start of the text is the text's.
        tokens: of a chunk at most.
        overlap: tokens at most that a chunk shares with the one before; less than `tokens`.
        limit: of a chunk with prompt and special tokens. Before some texts a prompt has more tokens
            than alone, if its end joins their beginning.
    """
    encode = tokenizer.rust.encode_batch
    whole = [prompt + text for text in texts]
    found = guarded_text(Path("tokenizer.json"), encode, whole, add_special_tokens=False)
    chunks = []
    for text, encoding in zip(texts, found, strict=True):
        places = encoding.offsets
        own = next((i for i, (_, end) in enumerate(places) if end > len(prompt)), len(places))
        head = [*tokenizer.prefix, *encoding.ids[:own]]
        special = len(head) + len(tokenizer.suffix)
        most = tokens if limit is None else max(1, min(tokens, limit - special))
        ranges = list(_cuts(encoding.word_ids[own:], most, min(overlap, most - 1)))
        spans = [(max(a - len(prompt), 0), b - len(prompt)) for a, b in places[own:]]
        chunks.append(
            Chunked(
                head,
                encoding.ids[own:],
                tokenizer.suffix,
                ranges,
                [_stripped(text, spans[r.start : r.stop]) for r in ranges],
            )
        )
    return chunks


def _cuts(words: Sequence[int | None], tokens: int, overlap: int) -> Iterator[range]:
    """Ranges of tokens, given the word that each belongs to."""

    def inside(place: int) -> bool:
        """Whether a cut before this token divides a word."""
        return words[place] is not None and words[place] == words[place - 1]

    start = end = 0
    while True:
        before, end = end, min(start + tokens, len(words))
        if end < len(words):
            # back to the start of a word, as long as the chunk has something new
            cut = next((i for i in range(end, max(start, before), -1) if not inside(i)), end)
            end = cut
        yield range(start, end)
        if end == len(words):
            return
        start = max(end - overlap, start + 1)
        while start < end and inside(start):
            start += 1


def _stripped(text: str, places: list[tuple[int, int]]) -> tuple[int, int]:
    """Where the characters of some tokens are, without white space at the ends."""
    if not places:
        return 0, 0
    start, end = min(a for a, _ in places), max(b for _, b in places)
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return start, end
