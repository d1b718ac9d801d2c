"""Find places where a text can be cut without changing the token ids before the cut.

Only the beginning of a long text reaches the model, so only that part is tokenised. But half a word
has other ids than the whole word, so each kind of cut needs a proof. There are two:

- Between two words. The normalizers and pre-tokenizers listed below never look beyond a word. So
  the text after white space (or, for BERT, from a Chinese character on) cannot affect earlier ids.
- Within a run of Chinese characters, for a Unigram model, which does not split them. Its best
  (Viterbi) path to a position depends only on the text before that position. A run that is longer
  than the longest run in any vocabulary piece cannot be spanned by one piece, so the path of the
  whole text passes through at least one position inside the run. Ids on which the cuts at all
  these positions agree are therefore ids of the whole text.

Texts are not cut if the tokenizer has any other part, or an added token that could span a cut or
that depends on its neighbours.
Source: Kudo 2018, arXiv:1804.10959 (Unigram); Schuster and Nakajima 2012 (WordPiece).
"""

import json
import re
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as RustTokenizer

# Unified ideographs, which every Unicode normal form leaves unchanged.
IDEOGRAPH = "[\u4e00-\u9fff]"
# Characters that a word may end with: no combining mark, no kind of space.
ENDING = r"[\w!-~]"
# Normalizers whose result for a character depends only on it and its combining marks.
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
        rust: whose normalizer is applied to the characters at a cut to check that they survive;
            None if not needed. The normalizer itself may not be picklable.
    """

    pattern: re.Pattern[str] | None
    rust: RustTokenizer | None = None

    @classmethod
    def of(cls, rust: RustTokenizer) -> "Cuts":
        """The cuts that are safe for the parts of this tokenizer."""
        normalizers = _parts(rust.normalizer, "normalizers")
        splitters = _parts(rust.pre_tokenizer, "pretokenizers")
        kinds = [part["type"] for part in splitters]
        added = rust.get_added_tokens_decoder().values()
        if any(_crosses(token, rust.normalizer) for token in added):
            return cls(None)
        steps = [part["type"] for part in normalizers]
        bert = steps in (["BertNormalizer"], ["Lowercase", "BertNormalizer"])
        if bert and kinds == ["BertPreTokenizer"]:
            ideographs = IDEOGRAPH[1:-1] if normalizers[-1]["handle_chinese_chars"] else ""
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
            return cls(re.compile(words), rust)
        runs = re.findall(f"{IDEOGRAPH}+", "\n".join(rust.get_vocab()))
        longest = max(map(len, runs), default=1)
        return cls(re.compile(rf"{words}|{IDEOGRAPH}{{{longest + 1}}}"), rust)

    def ends(self, text: str, start: int) -> list[int]:
        """Ends of prefixes of `text`, at or after `start`.

        Returns: one safe end; or several, whose prefixes the caller tokenises to keep the ids that
            all agree on; or the length of the text if there is no safe cut.
        """
        for match in self.pattern.finditer(text, start) if self.pattern else ():
            run, first = match.group(), match.start()
            if run and self._normal(run) == run:
                return [*range(first + 1, match.end())]
            # unless the normalizer drops the last character: in the whole text the spaces around
            # it would merge
            if not run and re.search(rf"{ENDING}\Z", self._normal(text[first - 1])):
                return [first]
        return [len(text)]

    def _normal(self, characters: str) -> str:
        normalizer = self.rust and self.rust.normalizer
        if normalizer is None:
            return characters
        normal: str = normalizer.normalize_str(characters)
        return normal


def _parts(component: Any, key: str) -> list[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, as in tokenizer.json."""
    if component is None:
        return []
    raw: dict[str, Any] = json.loads(component.__getstate__())
    return raw[key] if raw["type"] == "Sequence" else [raw]


def _is_local(part: dict[str, Any], space: str) -> bool:
    """Whether this normalizer never looks beyond a word.

    `space` is the character that the pre-tokenizer puts in place of " ".
    """
    if part["type"] == "Replace":
        return part["pattern"] == MANY_SPACES and part["content"] in (" ", space)
    return part["type"] in LOCAL


def _crosses(token: AddedToken, normalizer: Any) -> bool:
    """Whether a cut may change where this token, which is matched before splitting, is found."""
    forms = [token.content]
    if token.normalized and normalizer is not None:
        forms.append(normalizer.normalize_str(token.content))
    return token.single_word or any(re.search(rf"\s|{IDEOGRAPH}", form) for form in forms)
