"""Text -> token ids: the checkpoint's tokenizer, its special tokens, and cutting to a length.

The ids equal those of transformers' tokenizer of the same folder. Truncation and padding stored in
tokenizer.json are switched off: they are settings of another tool.
"""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Encoding
from tokenizers import Tokenizer as RustTokenizer

from nomicbert.errors import TokenizerError
from nomicbert.loading.folder import TokenizerSettings
from nomicbert.text.library_errors import guarded, guarded_text
from nomicbert.text.pair_lengths import longest_first
from nomicbert.text.safe_cuts import Cuts
from nomicbert.text.tokenizer_files import build, lower_first, read_other_files
from nomicbert.text.tokenizer_json import check_rows

Pair = tuple[str, str]

# Texts of at most this many characters per wanted token are tokenised whole.
CHARACTERS_PER_TOKEN = 6


class Tokenizer:
    """The tokenizer of one checkpoint.

    Attributes:
        prefix: special token ids before a text.
        suffix: special token ids after it.
        special: ids of the special tokens that the files name or list as such.
        gives_types: whether the texts of a pair have different type ids.
        cuts_start: whether a text that is too long loses its beginning, not its end.
        other_files: other files of the checkpoint's tokenizer, name -> content.
    """

    # no other attribute can be set: those of transformers' tokenizers would have no effect
    __slots__ = (
        "_cuts", "_lower_case", "_path", "cuts_start", "gives_types", "other_files", "prefix",
        "rust", "special", "suffix",
    )  # fmt: skip

    def __init__(
        self, rust: RustTokenizer, lower_case: bool = False, path: Path = Path("tokenizer.json")
    ) -> None:
        """Wrap a tokenizer of the `tokenizers` library, read from `path`."""
        rust.no_truncation()
        rust.no_padding()
        if lower_case:
            lower_first(rust)
        self.rust, self._path = rust, path
        self._lower_case = lower_case
        framed = guarded(path, rust.encode, "a")
        spans = _spans(framed, 1)
        if not spans:
            raise TokenizerError(f"{path} does not put its special tokens around a text")
        self.prefix, self.suffix = framed.ids[: spans[0].start], framed.ids[spans[0].stop :]
        self._cuts = guarded(path, Cuts.of, rust)
        self.special: frozenset[int] = frozenset()
        self.gives_types = True
        self.cuts_start = False
        self.other_files: dict[str, bytes] = {}

    def __getstate__(self) -> dict[str, Any]:
        """The attributes, and a setting that the library's own state leaves out."""
        state = {name: getattr(self, name) for name in self.__slots__}
        return {**state, "splits_special": self.rust.encode_special_tokens}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copy."""
        for name in self.__slots__:
            setattr(self, name, state[name])
        self.rust.encode_special_tokens = state["splits_special"]

    @classmethod
    def from_settings(cls, settings: TokenizerSettings, vocab_size: int) -> "Tokenizer":
        """Read tokenizer.json, or the vocab.txt of a BERT checkpoint.

        Args:
            settings: the folder and the settings stored next to these files.
            vocab_size: rows of the word embedding; every id must be below.

        Raises: TokenizerError, ConfigError: files missing, damaged or not supported, or with more
            ids than the embedding has rows.
        """
        folder = settings.folder
        built = build(settings, vocab_size)
        tokenizer = cls(built.rust, settings.lower_case, built.path)
        largest = max([built.largest, *tokenizer.prefix, *tokenizer.suffix])
        check_rows(built.path, largest, vocab_size)
        if built.token_types and any(built.rust.encode("a").type_ids):
            raise TokenizerError(f"{built.path} gives a single text type ids other than 0")
        tokenizer.gives_types, tokenizer.cuts_start = built.token_types, built.cuts_start
        tokenizer.special = built.special
        tokenizer.other_files = read_other_files(folder)
        if built.cuts_start:  # tokenizer.json may have stated it, as a part of what is switched off
            stated = {**settings.stated.raw, "truncation_side": "left"}
            tokenizer.other_files[settings.stated.path.name] = json.dumps(stated, indent=2).encode()
        return tokenizer

    def save(self, folder: Path) -> None:
        """Write tokenizer.json, and the `other_files`, into a folder."""
        self.rust.save(str(folder / "tokenizer.json"))
        for name, content in self.other_files.items():
            (folder / name).write_bytes(content)

    def __repr__(self) -> str:
        """What was loaded, in one line."""
        kind, size = type(self.rust.model).__name__, self.rust.get_vocab_size()
        return f"Tokenizer({kind}, {size} tokens, prefix {self.prefix}, suffix {self.suffix})"

    @property
    def lower_case(self) -> bool:
        """Whether texts are lowered before all else: do_lower_case of sentence_bert_config.json.

        Special tokens in a text are not lowered.
        """
        return self._lower_case

    @property
    def shortest(self) -> int:
        """Smallest maximum length: the special tokens and one more."""
        return len(self.prefix) + len(self.suffix) + 1

    def encode(self, texts: Sequence[str], max_length: int) -> tuple[list[list[int]], list[int]]:
        """Token ids of each text with its special tokens, at most `max_length` ids per text.

        Of a long text only a sufficient prefix is tokenised.

        Args:
            texts: any number.
            max_length: more than the special tokens; the end of the text is cut, or its beginning
                if `cuts_start`.

        Returns: the ids, and the indices of the texts that were cut.
        """
        room = max_length - len(self.prefix) - len(self.suffix)
        bodies = self._first_ids(texts, room + 1)
        cut = [index for index, body in enumerate(bodies) if len(body) > room]
        return [[*self.prefix, *self._kept(body, room), *self.suffix] for body in bodies], cut

    def count(self, texts: Sequence[str]) -> list[int]:
        """Token ids of each whole text, special ones included: the length before truncation."""
        special = len(self.prefix) + len(self.suffix)
        return [len(body) + special for body in self._ids(texts)]

    def encode_windows(
        self, texts: Sequence[str], prompt: str, max_length: int, overlap: int = 0
    ) -> list[list[list[int]]]:
        """Token ids of each text in windows of at most `max_length` ids.

        All windows but the last are full. The last begins `overlap` ids before the end of the one
        before, and ends with the text.

        Args:
            texts: any number, without the prompt.
            prompt: repeated at the beginning of every window, between the special tokens.
            max_length: per window, special tokens included.
            overlap: ids of the text that a window shares with the one before.

        Returns: the windows of each text; a text that fits has one window, equal to `encode`.
        Raises: ValueError: the prompt and the overlap leave no room for more of the text.
        """
        (opening,) = self._ids([prompt])
        windows = []
        for body in self._ids([prompt + text for text in texts]):
            # a token that spans the end of the prompt and the start of the text is the text's
            length = _agreed(opening, [body])
            head = [*self.prefix, *body[:length]]
            room = max_length - len(head) - len(self.suffix)
            if room <= overlap:
                full = f"and {overlap} tokens of overlap fill" if overlap else "alone fills"
                raise ValueError(
                    f"the prompt {prompt!r} {full} windows of {max_length} tokens: allow more"
                )
            # no window consists of the overlap alone
            starts = range(length, max(len(body) - overlap, length + 1), room - overlap)
            windows.append([[*head, *body[i : i + room], *self.suffix] for i in starts])
        return windows

    def encode_pairs(
        self, pairs: Sequence[Pair], max_length: int, max_second: int | None = None
    ) -> tuple[list[list[int]], list[list[int]], list[int]]:
        """Token ids of pairs with their special tokens, at most `max_length` ids per pair.

        Args:
            pairs: any number.
            max_length: tokens are removed from the end of the longer text until the pair fits.
            max_second: before that, tokens of the second text beyond this number are removed.

        Returns: the ids, their type ids (0 and 1 for the two texts; all 0 if the checkpoint's
            tokenizer has none), and the indices of the pairs that were cut.
        Raises: ValueError: no room next to the special tokens.
        """
        (before, between, after), kinds = self._pair_form()
        special = len(before) + len(between) + len(after)
        if max_length <= special:
            raise ValueError(f"a pair needs more than {special} tokens, not {max_length}")
        room = max_length - special
        # many pairs often have one query: each text is tokenised once
        texts = [*dict.fromkeys(text for pair in pairs for text in pair)]
        bodies = dict(zip(texts, self._first_ids(texts, room + 1), strict=True))
        ids, types, cut = [], [], []
        for index, pair in enumerate(pairs):
            first, second = (bodies[text] for text in pair)
            a, b = len(first), len(second[:max_second])
            if a + b > room or b < len(second):
                cut.append(index)
            if a + b > room:
                if min(a, b) > room:  # lengths are prefixes' so far; which is longer matters below
                    first_whole, second_whole = self._ids(pair)
                    a, b = len(first_whole), len(second_whole[:max_second])
                a, b = longest_first(a, b, room)
            parts = (before, self._kept(first, a), between, self._kept(second, b), after)
            ids.append([token for part in parts for token in part])
            lengths = zip(kinds, parts, strict=True)
            types.append([kind for kind, part in lengths for _ in part])
        return ids, types, cut

    def _pair_form(self) -> tuple[list[list[int]], list[int]]:
        """Special tokens before, between and after two texts, and the type id of each part."""
        framed = guarded(self._path, self.rust.encode, "a", "a")
        spans = _spans(framed, 2)
        if not spans or max(framed.type_ids) > 1:
            raise TokenizerError(f"{self._path} does not put its special tokens around two texts")
        starts = [0, *(end for span in spans for end in (span.start, span.stop))]
        ids = framed.ids
        special = [ids[: starts[1]], ids[starts[2] : starts[3]], ids[starts[4] :]]
        types = [*framed.type_ids, 0] if self.gives_types else [0] * (len(ids) + 1)
        return special, [types[start] for start in starts]

    def _first_ids(self, texts: Sequence[str], wanted: int) -> list[list[int]]:
        """Ids of each text without special tokens: all of them, or at least the first `wanted`.

        Long texts are tokenised by growing prefixes. `ends` gives safe cuts, or candidates of which
        only the ids that all of them agree on are safe.
        """
        if self.cuts_start:
            return self._ids(texts)
        found: list[list[int]] = [[]] * len(texts)
        # short texts: whole; long ones: a sample first, to estimate how many characters suffice
        whole = CHARACTERS_PER_TOKEN * wanted
        look = {i: whole if len(t) <= whole else wanted // 4 + 1 for i, t in enumerate(texts)}
        while look:
            find = self._cuts.ends
            ends = {i: guarded_text(self._path, find, texts[i], n) for i, n in look.items()}
            longest = self._ids([texts[i][: cuts[-1]] for i, cuts in ends.items()])
            tried = dict(zip(ends, longest, strict=True))
            # the shorter candidates are tokenised only if the longest one gave enough ids
            proofs = {i: ends[i][:-1] for i, body in tried.items() if len(body) >= wanted}
            others = iter(self._ids([texts[i][:end] for i in proofs for end in proofs[i]]))
            for i, body in tried.items():
                agreed = _agreed(body, [next(others) for _ in proofs.get(i, ())])
                end = ends[i][-1]
                if end == len(texts[i]) or agreed >= wanted:
                    found[i] = body[:agreed]
                    del look[i]
                else:
                    missing = 1.1 * wanted / max(agreed, 1)
                    look[i] = int(end * min(max(missing, 2.0), 32.0))
        return found

    def _kept(self, body: list[int], room: int) -> list[int]:
        """The ids of a text that are kept if `room` ids fit."""
        return body[max(len(body) - room, 0) :] if self.cuts_start else body[:room]

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of whole texts without special tokens."""
        if not texts:
            return []  # the library takes as long for none as for a short text
        call = self.rust.encode_batch_fast
        encodings = guarded_text(self._path, call, list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]


def _spans(encoding: Encoding, texts: int) -> list[range]:
    """Where the texts are; empty unless each is there once, in order, between special tokens."""
    sides, special = encoding.sequence_ids, encoding.special_tokens_mask
    found = [range(s := sides.index(i), s + sides.count(i)) for i in range(texts) if i in sides]
    places = [place for place, is_special in enumerate(special) if not is_special]
    return found if [*itertools.chain(*found)] == places and len(found) == texts else []


def _agreed(first: list[int], others: list[list[int]]) -> int:
    """Length of the common prefix of all id lists."""
    agreed = len(first)
    for other in others:
        pairs = zip(first[:agreed], other, strict=False)
        agreed = next((i for i, (a, b) in enumerate(pairs) if a != b), min(agreed, len(other)))
    return agreed
