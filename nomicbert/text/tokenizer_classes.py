"""The tokenizer classes of transformers 5, and what each builds from a checkpoint's files.

transformers does not take tokenizer.json as it stands. Its classes for BERT and XLM-R keep only the
vocabulary (and XLM-R's table of characters) and build the other parts anew.

Source: BertTokenizer, XLMRobertaTokenizer and TokenizersBackend of transformers 5.23.
"""

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as RustTokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer, Precompiled
from tokenizers.pre_tokenizers import BertPreTokenizer, Metaspace, Sequence, WhitespaceSplit

from nomicbert.errors import TokenizerError
from nomicbert.loading.json_settings import Settings
from nomicbert.text.library_errors import guarded
from nomicbert.text.tokenizer_json import TokenizerJson

# No vocabulary has this character, the last one for private use.
UNKNOWN = "\U0010fffd"
XLM_R_UNKNOWN_ID = 3


@dataclass(frozen=True)
class Source:
    """The file with the vocabulary, and the settings stated elsewhere.

    Attributes:
        path: of tokenizer.json, or of vocab.txt where that is missing.
        read: tokenizer.json, or None.
        stated: tokenizer_config.json.
    """

    path: Path
    read: TokenizerJson | None
    stated: Settings

    @property
    def whole(self) -> RustTokenizer | None:
        """The tokenizer in tokenizer.json, or None."""
        return None if self.read is None else self.read.rust


@dataclass(frozen=True)
class TokenizerClass:
    """What transformers builds for a `tokenizer_class`.

    Attributes:
        names: texts of the special tokens that the files do not name.
        token_types: whether the two texts of a pair have different type ids.
        rebuild: makes a tokenizer from the vocabulary and the texts of the special tokens.
        single: one text and the special tokens around it.
        pair: two texts and the special tokens around them.
    """

    names: Mapping[str, str]
    token_types: bool
    rebuild: Callable[[Source, Mapping[str, str]], RustTokenizer]
    single: str
    pair: str


def _unchanged(source: Source, texts: Mapping[str, str]) -> RustTokenizer:
    return _whole(source)


def _whole(source: Source) -> RustTokenizer:
    if source.whole is None:
        raise TokenizerError(
            f"{source.path.parent} has no tokenizer.json, which its tokenizer_class needs"
        )
    return source.whole


def _bert(source: Source, texts: Mapping[str, str]) -> RustTokenizer:
    unknown = texts.get("unk_token", "")
    if source.whole is None:
        path = str(source.path)
        model = guarded(source.path, WordPiece.from_file, path, unk_token=unknown)
    else:
        model = _model(source, "WordPiece")
        model.unk_token, model.continuing_subword_prefix = unknown, "##"
        model.max_input_chars_per_word = 100
    rust = RustTokenizer(model)
    s = source.stated
    strips = s.raw.get("strip_accents") is not None
    rust.normalizer = BertNormalizer(
        clean_text=True,
        handle_chinese_chars=s.flag("tokenize_chinese_chars", default=True),
        strip_accents=s.flag("strip_accents", default=False) if strips else None,
        lowercase=s.flag("do_lower_case", default=True),
    )
    rust.pre_tokenizer = BertPreTokenizer()
    return rust


def _xlm_roberta(source: Source, texts: Mapping[str, str]) -> RustTokenizer:
    model = _model(source, "Unigram")
    found = [token.id for token in guarded(source.path, model.tokenize, UNKNOWN)]
    if found != [XLM_R_UNKNOWN_ID]:
        raise TokenizerError(
            f"{source.path} turns unknown characters into the ids {found}, but a tokenizer of "
            f"XLM-R into [{XLM_R_UNKNOWN_ID}]"
        )
    rust = RustTokenizer(model)
    if (table := _character_table(_whole(source))) is not None:
        rust.normalizer = Precompiled(table)
    spaced = source.stated.flag("add_prefix_space", default=True)
    metaspace = Metaspace(replacement="▁", prepend_scheme="always" if spaced else "never")
    rust.pre_tokenizer = Sequence([WhitespaceSplit(), metaspace])
    return rust


def _model(source: Source, wanted: str) -> Any:
    model = _whole(source).model
    if type(model).__name__ != wanted:
        raise TokenizerError(
            f"{source.path} holds a {type(model).__name__} model, but the tokenizer_class of this "
            f"checkpoint needs {wanted}: state tokenizer_class in {source.stated.path.name}"
        )
    return model


def _character_table(whole: RustTokenizer) -> bytes | None:
    """The compiled table of characters of a SentencePiece normalizer."""
    if whole.normalizer is None:
        return None
    raw = json.loads(whole.normalizer.__getstate__())
    for part in raw["normalizers"] if raw["type"] == "Sequence" else [raw]:
        if part["type"] == "Precompiled":
            return base64.b64decode(part["precompiled_charsmap"])
    return None


BERT_NAMES = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
BERT = TokenizerClass(
    BERT_NAMES,
    True,
    _bert,
    "cls_token:0 $A:0 sep_token:0",
    "cls_token:0 $A:0 sep_token:0 $B:1 sep_token:1",
)
XLM_ROBERTA = TokenizerClass(
    {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "sep_token": "</s>",
        "pad_token": "<pad>",
        "cls_token": "<s>",
        "mask_token": "<mask>",
    },
    False,
    _xlm_roberta,
    "bos_token:0 $A:0 eos_token:0",
    "bos_token:0 $A:0 eos_token:0 eos_token:0 $B:0 eos_token:0",
)
GENERAL = TokenizerClass({}, False, _unchanged, "$A:0", "$A:0 $B:1")
CLASSES = {
    "BertTokenizer": BERT,
    "DistilBertTokenizer": replace(BERT, token_types=False),
    "ElectraTokenizer": BERT,
    "MobileBertTokenizer": BERT,
    "XLMRobertaTokenizer": XLM_ROBERTA,
    "PreTrainedTokenizer": GENERAL,
    "TokenizersBackend": GENERAL,
}
