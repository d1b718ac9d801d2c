"""The files of a tokenizer -> the tokenizer that transformers 5 builds from them.

Other ids give other vectors, so everything that changes an id is done here in the same way, or
refused.

Source: the behaviour of AutoTokenizer in transformers 5.23 for model types bert and nomic_bert.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer as RustTokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import Lowercase
from tokenizers.normalizers import Sequence as Steps
from tokenizers.processors import TemplateProcessing

from nomicbert.errors import TokenizerError
from nomicbert.loading.folder import TokenizerSettings
from nomicbert.loading.json_settings import Settings, present
from nomicbert.loading.plain_files import SETTINGS_LIMIT, check_file, read_file
from nomicbert.text.added_tokens import AddedTokens
from nomicbert.text.library_errors import guarded
from nomicbert.text.tokenizer_classes import CLASSES, UNKNOWN, Source, TokenizerClass
from nomicbert.text.tokenizer_json import read_tokenizer_json
from nomicbert.text.tokenizer_limits import GROWTH, check_tokens

# Files that state tokens and settings, in addition to tokenizer.json or vocab.txt.
OTHER_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
# The library keeps about 80 bytes per line; LaBSE, the largest of its kind, has 5 MB.
MOST_VOCAB_BYTES = 10_000_000


class Built(NamedTuple):
    """A tokenizer, and the settings that the `tokenizers` library does not hold.

    Attributes:
        rust: the tokenizer.
        path: of the file with its vocabulary.
        largest: of its ids.
        special: ids of the special tokens that the files name or list as such, as in
            `all_special_ids` of transformers.
        token_types: whether the two texts of a pair have different type ids.
        cuts_start: whether a text that is too long loses its beginning.
    """

    rust: RustTokenizer
    path: Path
    largest: int
    special: frozenset[int]
    token_types: bool
    cuts_start: bool


def build(settings: TokenizerSettings, rows: int) -> Built:
    """Build the tokenizer of a checkpoint.

    Args:
        settings: the folder and the settings stored next to these files.
        rows: of the word embedding; every id must be below.

    Raises: TokenizerError, ConfigError: a file is missing, damaged, or asks for something that is
        not supported.
    """
    name, stated = settings.class_name, settings.stated
    kind = CLASSES.get(name.removesuffix("Fast"))
    if kind is None:
        raise TokenizerError(
            f"{settings.folder}: tokenizer_class = {name!r:.80} is not supported; supported are "
            f"{', '.join(CLASSES)}, with or without 'Fast'. If tokenizer.json is right as it is, "
            "state PreTrainedTokenizerFast in tokenizer_config.json"
        )
    source = _open(settings.folder, stated, rows)
    rust, special = _assembled(source, kind)
    rust.encode_special_tokens = stated.flag("split_special_tokens", default=False)
    # without making a second dictionary of the vocabulary
    known = [source.read.largest] if source.read else rust.get_vocab().values()
    largest = max([*known, *rust.get_added_tokens_decoder()], default=-1)
    types, cuts_start = _token_types(stated, kind), _cuts_start(source)
    return Built(rust, source.path, largest, special, types, cuts_start)


def read_other_files(folder: Path) -> dict[str, bytes]:
    """Name -> content of the other files of a tokenizer.

    Raises: TokenizerError: one is not a file.
    """
    paths = [folder / name for name in OTHER_FILES if present(folder / name)]
    return {path.name: read_file(path, SETTINGS_LIMIT, TokenizerError) for path in paths}


def _assembled(source: Source, kind: TokenizerClass) -> tuple[RustTokenizer, frozenset[int]]:
    """The vocabulary, then the added tokens, then the special tokens around texts.

    Returns: the tokenizer, and the ids of `AddedTokens.special`.
    """
    added = guarded(source.stated.path, AddedTokens.read, source.stated, kind.names, source.whole)
    growth = max(GROWTH["BertNormalizer"], source.read.growth if source.read else 1)
    new = {token.content for token in (*added.listed, *added.special)}
    check_tokens(source.stated.path, new, growth)
    texts = {key: token.content for key, token in added.named.items()}
    rust = kind.rebuild(source, texts)
    _check_model(source.path, rust)
    _check_frame(source, rust, added, kind.single)
    guarded(source.path, added.add_to, rust)
    if rust.post_processor is None:
        rust.post_processor = guarded(source.path, _frame, rust, kind, texts)
    ids = (rust.token_to_id(token.content) for token in added.special)
    return rust, frozenset(number for number in ids if number is not None)


def _token_types(stated: Settings, kind: TokenizerClass) -> bool:
    inputs = stated.raw.get("model_input_names")
    if not isinstance(inputs, list | None):
        raise TokenizerError(f"{stated.path}: model_input_names must be a list, not {inputs!r:.80}")
    return kind.token_types if inputs is None else "token_type_ids" in inputs


def _cuts_start(source: Source) -> bool:
    stated = source.stated
    baked = source.whole and source.whole.truncation
    side = stated.get("truncation_side", default=baked["direction"] if baked else "right")
    if side not in ("left", "right"):
        raise TokenizerError(
            f"{stated.path}: truncation_side must be left or right, not {side!r:.80}"
        )
    return bool(side == "left")


def _open(folder: Path, stated: Settings, rows: int) -> Source:
    versions = stated.raw.get("fast_tokenizer_files")
    if versions not in (None, [], ["tokenizer.json"]):
        raise TokenizerError(
            f"{stated.path}: fast_tokenizer_files = {versions!r:.80} is not supported"
        )
    whole, vocab = folder / "tokenizer.json", folder / "vocab.txt"
    if present(whole):
        return Source(whole, read_tokenizer_json(whole, rows), stated)
    if present(vocab):
        check_file(vocab, MOST_VOCAB_BYTES, TokenizerError)
        return Source(vocab, None, stated)
    raise TokenizerError(f"{folder} has no tokenizer: neither tokenizer.json nor vocab.txt")


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


def lower_first(rust: RustTokenizer) -> None:
    """Put Lowercase before the other normalizers, as sentence-transformers does."""
    steps = [] if rust.normalizer is None else [rust.normalizer]
    if isinstance(rust.normalizer, Steps):
        steps = list(rust.normalizer)  # type: ignore[call-overload]  # indexable since 0.21
    if not any(isinstance(step, Lowercase) for step in steps):
        rust.normalizer = Steps([Lowercase(), *steps])
