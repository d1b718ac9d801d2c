"""Text -> token ids: the checkpoint's tokenizer, its special tokens, and cutting to a length.

The ids are those of transformers' tokenizer of the same folder. Truncation and padding that are
baked into tokenizer.json are switched off: they are another tool's settings.
"""

from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as RustTokenizer
from tokenizers.implementations.bert_wordpiece import BertWordPieceTokenizer
from tokenizers.normalizers import BertNormalizer

from nomicbert.errors import TokenizerError
from nomicbert.settings import Settings, read_json

# transformers writes 1e30 for "no limit"
NO_LIMIT = 1_000_000


class Tokenizer:
    """The tokenizer of one checkpoint.

    Attributes:
        prefix: special token ids before a text.
        suffix: special token ids after it.
        model_max_length: tokens that tokenizer_config.json allows, special ones included, or None.
        lower_case: lower every text first, as sentence_bert_config.json may ask.
    """

    def __init__(self, rust: RustTokenizer, model_max_length: int | None = None) -> None:
        """Wrap a tokenizer of the `tokenizers` library."""
        rust.no_truncation()
        rust.no_padding()
        self.rust = rust
        self.model_max_length = model_max_length
        self.lower_case = False
        bare = rust.encode("a", add_special_tokens=False).ids
        full = rust.encode("a", add_special_tokens=True).ids
        start = next((i for i in range(len(full)) if full[i : i + len(bare)] == bare), None)
        if not bare or start is None:
            raise TokenizerError("the tokenizer does not put its special tokens around a text")
        self.prefix, self.suffix = full[:start], full[start + len(bare) :]

    @classmethod
    def from_folder(cls, folder: Path, vocab_size: int) -> "Tokenizer":
        """Read tokenizer.json, or the vocab.txt of a BERT checkpoint.

        Args:
            folder: the checkpoint.
            vocab_size: rows of the word embedding, which every id must be below.

        Raises: TokenizerError: files missing, damaged, or with more ids than the embedding.
        """
        settings_file = folder / "tokenizer_config.json"
        settings = read_json(settings_file) if settings_file.is_file() else {}
        whole, vocab = folder / "tokenizer.json", folder / "vocab.txt"
        if not whole.is_file() and not vocab.is_file():
            raise TokenizerError(f"{folder} has no tokenizer: neither tokenizer.json nor vocab.txt")
        try:
            if whole.is_file():
                rust = RustTokenizer.from_file(str(whole))
            else:
                rust = RustTokenizer.from_str(BertWordPieceTokenizer(str(vocab)).to_str())
        except Exception as error:  # the library raises nothing more specific
            source = whole if whole.is_file() else vocab
            raise TokenizerError(f"{source} is not a tokenizer: {error}") from error
        _normalise_as_stated(rust, Settings(settings, settings_file))
        largest = max(rust.get_vocab(with_added_tokens=True).values(), default=-1)
        if largest >= vocab_size:
            raise TokenizerError(
                f"the tokenizer of {folder} has ids up to {largest}, but the embedding has only "
                f"{vocab_size} rows"
            )
        limit = Settings(settings, settings_file).number("model_max_length", default=NO_LIMIT)
        return cls(rust, int(limit) if limit < NO_LIMIT else None)

    def encode(self, texts: Sequence[str], max_length: int) -> tuple[list[list[int]], int]:
        """Token ids of each text with its special tokens, at most `max_length` of them.

        Args:
            texts: any number.
            max_length: above the number of special tokens; the text's end is cut, never they.

        Returns: the ids, and how many texts were cut.
        """
        if self.lower_case:
            texts = [text.lower() for text in texts]
        room = max_length - len(self.prefix) - len(self.suffix)
        encodings = self.rust.encode_batch_fast(list(texts), add_special_tokens=False)
        bodies = [encoding.ids for encoding in encodings]
        cut = sum(len(body) > room for body in bodies)
        return [[*self.prefix, *body[:room], *self.suffix] for body in bodies], cut


def _normalise_as_stated(rust: RustTokenizer, settings: Settings) -> None:
    """Let tokenizer_config.json have the last word on a BERT normalizer, as in transformers."""
    if not isinstance(rust.normalizer, BertNormalizer):
        return
    normalizer = rust.normalizer
    for key, attribute in (
        ("do_lower_case", "lowercase"),
        ("strip_accents", "strip_accents"),
        ("tokenize_chinese_chars", "handle_chinese_chars"),
    ):
        if settings.raw.get(key) is not None:
            setattr(normalizer, attribute, settings.flag(key, default=True))
    rust.normalizer = normalizer


def as_texts(inputs: Any) -> list[str]:
    """One text or any number of them, as a list; a TypeError names the first that is no str."""
    if isinstance(inputs, bytes | Mapping | Set):
        raise TypeError(
            f"inputs must be a str or an ordered collection of str, not {type(inputs).__name__}"
        )
    texts = [inputs] if isinstance(inputs, str) else list(inputs)
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"input {index} must be a str, not {type(text).__name__}: {text!r:.80}")
    return texts
