"""Where a text may be cut so that the ids before the cut stay those of the whole text.

Only the beginning of a long text reaches the model, so only that is worth tokenising. But a
tokenizer that is given half a word finds other ids, so a cut needs a proof. Two are known here:

- Between two words. The normalizers and pre-tokenizers listed below look at nothing beyond a word,
  so what follows white space, or for BERT a Chinese character, cannot reach back across it.
- Within a run of Chinese characters, for a Unigram model, which does not split them. Its best
  path (Viterbi) to a position depends on what stands before that position alone. No piece reaches
  across a run that is longer than the longest one in any piece, so the path of the whole text
  passes through a position inside: the ids on which cuts at all of them agree are those of the
  whole.

A tokenizer made of other parts is given whole texts, and so is one with an added token that could
lie across a cut, or that looks at its neighbours.
Source: Kudo 2018, arXiv:1804.10959 (Unigram); Schuster and Nakajima 2012 (WordPiece).
"""

import json
import re
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as RustTokenizer

# Unified ideographs, which every Unicode normal form leaves as they are.
IDEOGRAPH = "[\u4e00-\u9fff]"
# What a word may end with: no mark that belongs to the letter before it, nothing like a space.
ENDING = r"[\w!-~]"
# Normalizers that change a letter by itself and its combining marks alone.
LOCAL = {
    "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Precompiled", "Lowercase", "StripAccents", "Strip",
}  # fmt: skip
MANY_SPACES = {"Regex": " {2,}"}


@dataclass(frozen=True)
class Cuts:
    """The places where texts of one tokenizer may be cut.

    Attributes:
        pattern: finds the next place between words, or the next run of ideographs that no piece
            reaches across; None if no place is known to be safe.
        normalizer: to see what becomes of the letters at a place; None if it does not matter.
    """

    pattern: re.Pattern[str] | None
    normalizer: Any = None

    @classmethod
    def of(cls, rust: RustTokenizer) -> "Cuts":
        """What the parts of this tokenizer allow."""
        normalizers = _parts(rust.normalizer, "normalizers")
        splitters = _parts(rust.pre_tokenizer, "pretokenizers")
        kinds = [part["type"] for part in splitters]
        added = rust.get_added_tokens_decoder().values()
        if any(_crosses(token, rust.normalizer) for token in added):
            return cls(None)
        if [part["type"] for part in normalizers] == ["BertNormalizer"] and kinds == [
            "BertPreTokenizer"
        ]:
            ideographs = IDEOGRAPH[1:-1] if normalizers[0]["handle_chinese_chars"] else ""
            return cls(re.compile(rf"(?<={ENDING})(?=[ \t\r\n{ideographs}])"))
        metaspace = kinds in (["Metaspace"], ["WhitespaceSplit", "Metaspace"])
        if not metaspace or not splitters[-1].get("split", True):
            return cls(None)
        if not all(_is_local(part, splitters[-1]["replacement"]) for part in normalizers):
            return cls(None)
        words = rf"(?<={ENDING})(?= )"
        spaced = rust.normalizer is not None and rust.normalizer.normalize_str("a\tb\rc\nd")
        if "WhitespaceSplit" in kinds or spaced == "a b c d":
            words = rf"(?<={ENDING})(?=[ \t\r\n])"
        if type(rust.model).__name__ != "Unigram":
            return cls(re.compile(words), rust.normalizer)
        runs = re.findall(f"{IDEOGRAPH}+", "\n".join(rust.get_vocab()))
        longest = max(map(len, runs), default=1)
        return cls(re.compile(rf"{words}|{IDEOGRAPH}{{{longest + 1}}}"), rust.normalizer)

    def ends(self, text: str, start: int) -> list[int]:
        """Ends of prefixes of `text`, about `start` letters long, to be tokenised together.

        Returns: one safe end; or several, and the ids in which those prefixes agree are safe; the
            whole length if nothing else is.
        """
        for match in self.pattern.finditer(text, start) if self.pattern else ():
            run, first = match.group(), match.start()
            if run and self._normal(run) == run:
                return [*range(first + 1, match.end())]
            # where nothing is left of the last letter, spaces meet that are one in the whole text
            if not run and re.search(rf"{ENDING}\Z", self._normal(text[first - 1])):
                return [first]
        return [len(text)]

    def _normal(self, letters: str) -> str:
        if self.normalizer is None:
            return letters
        normal: str = self.normalizer.normalize_str(letters)
        return normal


def _parts(component: Any, key: str) -> list[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, as tokenizer.json has them."""
    if component is None:
        return []
    raw: dict[str, Any] = json.loads(component.__getstate__())
    return raw[key] if raw["type"] == "Sequence" else [raw]


def _is_local(part: dict[str, Any], space: str) -> bool:
    """Whether this normalizer keeps to a word; `space` is what pre-tokenizing makes of " "."""
    if part["type"] == "Replace":
        return part["pattern"] == MANY_SPACES and part["content"] in (" ", space)
    return part["type"] in LOCAL


def _crosses(token: AddedToken, normalizer: Any) -> bool:
    """Whether this token, which is found before anything is split, may depend on a cut."""
    forms = [token.content]
    if token.normalized and normalizer is not None:
        forms.append(normalizer.normalize_str(token.content))
    return token.single_word or any(re.search(rf"\s|{IDEOGRAPH}", form) for form in forms)
