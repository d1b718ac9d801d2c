"""The files of a tokenizer -> the tokenizer that transformers 5 builds from them.

transformers does not take tokenizer.json as it stands. Its class for BERT keeps only the vocabulary
and builds the other parts from tokenizer_config.json. Other ids give other vectors, so everything
that changes an id is done here in the same way, or refused.

Source: the behaviour of AutoTokenizer in transformers 5.23 for model types bert and nomic_bert.
"""

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from tokenizers import Tokenizer as RustTokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer, Precompiled
from tokenizers.pre_tokenizers import BertPreTokenizer, Metaspace, Sequence, WhitespaceSplit
from tokenizers.processors import TemplateProcessing

from nomicbert.errors import NomicBertError, TokenizerError
from nomicbert.loading.folder import TokenizerSettings
from nomicbert.loading.json_settings import Settings, present
from nomicbert.text.added_tokens import AddedTokens

Result = TypeVar("Result")

# Files that state tokens and settings beside tokenizer.json or vocab.txt.
BESIDE = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
# No vocabulary has this character, the last one for private use.
UNKNOWN = "\U0010fffd"
XLM_R_UNKNOWN_ID = 3


@dataclass(frozen=True)
class Source:
    """The file with the vocabulary, and the settings beside it.

    Attributes:
        path: of tokenizer.json, or of vocab.txt where that is missing.
        whole: the tokenizer in tokenizer.json, or None.
        stated: tokenizer_config.json.
    """

    path: Path
    whole: RustTokenizer | None
    stated: Settings


@dataclass(frozen=True)
class TokenizerClass:
    """What transformers builds for a `tokenizer_class`.

    Attributes:
        names: texts of the special tokens that the files do not name.
        token_types: whether the two texts of a pair have different type ids.
        rebuild: makes a tokenizer from the vocabulary and the texts of the special tokens; None
            keeps tokenizer.json as it is.
        single: one text and the special tokens around it.
        pair: two texts and the special tokens around them.
    """

    names: Mapping[str, str]
    token_types: bool
    rebuild: Callable[[Source, Mapping[str, str]], RustTokenizer] | None
    single: str
    pair: str


class Built(NamedTuple):
    """A tokenizer, and the settings that the `tokenizers` library does not hold.

    Attributes:
        rust: the tokenizer.
        token_types: whether the two texts of a pair have different type ids.
        cuts_start: whether a text that is too long loses its beginning.
    """

    rust: RustTokenizer
    token_types: bool
    cuts_start: bool


def build(settings: TokenizerSettings) -> Built:
    """Build the tokenizer of a checkpoint.

    Raises: TokenizerError, ConfigError: a file is missing, damaged, or asks for something that is
        not supported.
    """
    name, stated = settings.class_name, settings.stated
    kind = CLASSES.get(name.removesuffix("Fast"))
    if kind is None:
        raise TokenizerError(
            f"{settings.folder}: tokenizer_class = {name!r} is not supported; supported are "
            f"{', '.join(CLASSES)}, with or without 'Fast'"
        )
    versions = stated.raw.get("fast_tokenizer_files")
    if versions not in (None, [], ["tokenizer.json"]):
        raise TokenizerError(f"{stated.path}: fast_tokenizer_files = {versions!r} is not supported")
    source = _open(settings.folder, stated)
    added = guarded(stated.path, AddedTokens.read, stated, kind.names, source.whole)
    texts = {key: token.content for key, token in added.named.items()}
    if kind.rebuild is not None:
        rust = kind.rebuild(source, texts)
    elif source.whole is not None:
        rust = source.whole
    else:
        raise TokenizerError(f"{settings.folder} has no tokenizer.json, which {name} needs")
    _check_model(source.path, rust)
    if kind.rebuild is not None:
        _check_frame(source, rust, added, kind.single)
    guarded(source.path, added.add_to, rust)
    if kind.rebuild is not None or rust.post_processor is None:
        rust.post_processor = guarded(source.path, _frame, rust, kind, texts)
    rust.encode_special_tokens = stated.flag("split_special_tokens", default=False)
    inputs = stated.raw.get("model_input_names")
    if not isinstance(inputs, list | None):
        raise TokenizerError(f"{stated.path}: model_input_names must be a list, not {inputs!r}")
    types = kind.token_types if inputs is None else "token_type_ids" in inputs
    baked = source.whole and source.whole.truncation
    side = stated.get("truncation_side", default=baked["direction"] if baked else "right")
    if side not in ("left", "right"):
        raise TokenizerError(f"{stated.path}: truncation_side must be left or right, not {side!r}")
    return Built(rust, types, side == "left")


def guarded(path: Path, call: Callable[..., Result], *arguments: Any, **keywords: Any) -> Result:
    """Call the `tokenizers` library, whose errors have no class of their own.

    Raises: TokenizerError: it names the file.
    """
    try:
        return call(*arguments, **keywords)
    except NomicBertError:
        raise
    except Exception as error:
        raise TokenizerError(f"{path} is not a usable tokenizer: {error}") from error


def _open(folder: Path, stated: Settings) -> Source:
    whole, vocab = folder / "tokenizer.json", folder / "vocab.txt"
    if present(whole):
        return Source(whole, guarded(whole, RustTokenizer.from_file, str(whole)), stated)
    if present(vocab):
        return Source(vocab, None, stated)
    raise TokenizerError(f"{folder} has no tokenizer: neither tokenizer.json nor vocab.txt")


def _bert(source: Source, texts: Mapping[str, str]) -> RustTokenizer:
    unknown = texts.get("unk_token", "")
    if source.whole is None:
        path = str(source.path)
        model = guarded(source.path, WordPiece.from_file, path, unk_token=unknown)
    else:
        model = _model(source, "WordPiece", source.whole)
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
    if source.whole is None:
        raise TokenizerError(f"{source.path.parent} has no tokenizer.json, which XLM-R needs")
    model = _model(source, "Unigram", source.whole)
    found = [token.id for token in guarded(source.path, model.tokenize, UNKNOWN)]
    if found != [XLM_R_UNKNOWN_ID]:
        raise TokenizerError(
            f"{source.path} turns unknown characters into the ids {found}, but a tokenizer of "
            f"XLM-R into [{XLM_R_UNKNOWN_ID}]"
        )
    rust = RustTokenizer(model)
    if (table := _character_table(source.whole)) is not None:
        rust.normalizer = Precompiled(table)
    spaced = source.stated.flag("add_prefix_space", default=True)
    metaspace = Metaspace(replacement="▁", prepend_scheme="always" if spaced else "never")
    rust.pre_tokenizer = Sequence([WhitespaceSplit(), metaspace])
    return rust


def _model(source: Source, wanted: str, whole: RustTokenizer) -> Any:
    model = whole.model
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


def _check_model(path: Path, rust: RustTokenizer) -> None:
    """Refuse a model that fails, or tokenises at random, once a text has an unknown character."""
    model = rust.model
    unknown = model.unk_token if isinstance(model, WordPiece) else None
    if unknown is not None and model.token_to_id(unknown) is None:
        raise TokenizerError(
            f"{path} lacks {unknown or 'unk_token'!r}, the token for unknown words: name the "
            "vocabulary's own as unk_token in tokenizer_config.json"
        )
    if getattr(model, "dropout", None):
        raise TokenizerError(f"{path} has dropout = {model.dropout}, which draws ids at random")
    guarded(path, model.tokenize, UNKNOWN)


def _check_frame(source: Source, rust: RustTokenizer, added: AddedTokens, frame: str) -> None:
    """Refuse special tokens around a text that would be new, and so have an untrained id."""
    listed = {token.content for token in added.listed}
    for key in (part.partition(":")[0] for part in frame.split()):
        text = None if key.startswith("$") else added.named.get(key)
        if text is None and key.startswith("$"):
            continue
        if text is None or (text.content not in listed and rust.token_to_id(text.content) is None):
            raise TokenizerError(
                f"{source.path} lacks {text.content if text else key!r}, the {key} around every "
                f"text: name the vocabulary's own as {key} in tokenizer_config.json"
            )


def _frame(rust: RustTokenizer, kind: TokenizerClass, texts: Mapping[str, str]) -> Any:
    """The special tokens around a text, and around two."""
    pieces = []
    for form in (kind.single, kind.pair):
        parts = (part.partition(":") for part in form.split())
        pieces.append([f"{texts.get(name, name)}:{token_type}" for name, _, token_type in parts])
    ids = [(text, rust.token_to_id(text)) for key, text in texts.items() if f"{key}:" in kind.pair]
    return TemplateProcessing(single=pieces[0], pair=pieces[1], special_tokens=ids)


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
GENERAL = TokenizerClass({}, False, None, "$A:0", "$A:0 $B:1")
CLASSES = {
    "BertTokenizer": BERT,
    "DistilBertTokenizer": replace(BERT, token_types=False),
    "ElectraTokenizer": BERT,
    "MobileBertTokenizer": BERT,
    "XLMRobertaTokenizer": XLM_ROBERTA,
    "PreTrainedTokenizer": GENERAL,
    "TokenizersBackend": GENERAL,
}
