"""Token ids against transformers' tokenizer of the same folder; and folders with mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from nomicbert import Embedder
from nomicbert.errors import ConfigError, TokenizerError
from nomicbert.loading.folder import DEFAULT_CLASS, TokenizerSettings
from nomicbert.loading.json_settings import optional
from nomicbert.text.tokenizer import Tokenizer
from tests.support.checkpoints import build_checkpoint
from tests.support.vocabularies import HANZI, SENTENCES, WORDS

ROWS = 1024  # above every id of the tiny vocabularies
VARIANTS = {"wordpiece": "nomic-v1.5", "chinese": "conan-v1", "unigram": "nomic-v2-moe"}
LIMITS = (3, 4, 7, 16, 128, 512)
Pair = tuple[Tokenizer, PreTrainedTokenizerBase]

words = st.lists(st.sampled_from([*WORDS, *HANZI[:20], "Ünïcode", "x" * 120]), max_size=20)
spaced = st.builds(
    lambda parts, gap: gap.join(parts), words, st.sampled_from([" ", "  ", "\n", ""])
)
marks = st.sampled_from(
    ["[SEP]", "[CLS]", "[MASK]", "</s>", "<s>", "<mask>", "[unused3]", " [SEP]", "\x00", "\x07"]
)
any_text = st.lists(st.one_of(st.text(max_size=40), spaced, marks), max_size=4).map("".join)


@pytest.fixture(scope="module", params=VARIANTS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp(request.param)
    build_checkpoint(folder, VARIANTS[request.param], num_hidden_layers=1)
    if request.param == "unigram":
        # transformers' class for XLM-R keeps only the compiled character table of the file's
        # normalizer, which a small vocabulary does not have; its general class keeps all of it
        _rewrite(folder, "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    return tokenizer_of(folder, ROWS), AutoTokenizer.from_pretrained(folder)


def tokenizer_of(folder: Path, rows: int) -> Tokenizer:
    served = optional(folder / "sentence_bert_config.json")
    lower = served.flag("do_lower_case", default=False)
    stated = optional(folder / "tokenizer_config.json")
    config = optional(folder / "config.json")
    name = stated.raw.get("tokenizer_class") or config.raw.get("tokenizer_class") or DEFAULT_CLASS
    return Tokenizer.from_settings(TokenizerSettings(folder, name, stated, lower), rows)


def _theirs(tokenizer: PreTrainedTokenizerBase, text: str, limit: int) -> list[int]:
    return tokenizer(text, truncation=True, max_length=limit)["input_ids"]


@given(text=any_text, limit=st.sampled_from(LIMITS))
@settings(max_examples=150)
def test_ids_equal_transformers(pair: Pair, text: str, limit: int) -> None:
    ours, theirs = pair
    (ids,), cut = ours.encode([text], limit)
    assert ids == _theirs(theirs, text, limit)
    whole = _theirs(theirs, text, 100_000)
    assert cut == ([0] if len(whole) > limit else [])


def test_ids_of_many_texts(pair: Pair) -> None:
    ours, theirs = pair
    texts = [*SENTENCES, "", " ", "\n\t", "fox " * 700]
    for limit in LIMITS:
        ids, cut = ours.encode(texts, limit)
        assert ids == [_theirs(theirs, text, limit) for text in texts]
        whole = [len(_theirs(theirs, text, 100_000)) for text in texts]
        assert cut == [i for i, length in enumerate(whole) if length > limit]


@pytest.mark.parametrize("limit", [5, 64, 512])
def test_long_texts(pair: Pair, limit: int) -> None:
    """Texts far beyond the limit: words, many spaces, one endless word, Chinese, NULs."""
    ours, theirs = pair
    texts = [
        "".join(text * count for text, count in parts)
        for parts in (
            [("the river is long and deep. ", 900)],
            [("fox ", 3), (" ", 9000), ("dog ", 3000)],
            [("x", 9000), (" fox", 3000)],
            [("北京大学在中国什么是深度学习", 900)],
            [("北京大学，", 20), ("fox jump ", 900), ("[SEP]", 5), ("学习", 2000)],
            [("fox\x00dog ", 2000)],
            [("\x00", 5000), ("fox \ufffd", 900)],
        )
    ]
    ids, cut = ours.encode(texts, limit)
    assert ids == [_theirs(theirs, text, limit) for text in texts]
    whole = [len(_theirs(theirs, text, 100_000)) for text in texts]
    assert cut == [i for i, length in enumerate(whole) if length > limit]


@given(text=any_text, limit=st.sampled_from(LIMITS), overlap=st.sampled_from([0, 0, 1, 4, 8]))
@settings(max_examples=120)
def test_windows_equal_transformers(pair: Pair, text: str, limit: int, overlap: int) -> None:
    ours, theirs = pair
    if limit - 2 <= overlap:
        with pytest.raises(ValueError, match=f"fills? windows of {limit} tokens: allow more"):
            ours.encode_windows([text], "", limit, overlap)
        return
    (windows,) = ours.encode_windows([text], "", limit, overlap)
    overflow = theirs(
        text, truncation=True, max_length=limit, stride=overlap, return_overflowing_tokens=True
    )
    assert windows == overflow["input_ids"]


def test_every_window_begins_with_the_prompt(pair: Pair) -> None:
    ours, theirs = pair
    prompt = "search query: "
    text = "the river is long and deep " * 9
    ids = _theirs(theirs, prompt + text, 10_000)
    head = len(_theirs(theirs, prompt, 100)) - 1
    rest = ids[head:-1]
    room = 20 - head - 1
    for overlap in (0, 3):
        (windows,) = ours.encode_windows([text], prompt, 20, overlap)
        ends = [end for end in range(room, len(rest), room - overlap)]
        parts = [rest[end - room : end] for end in ends] + [rest[ends[-1] - overlap :]]
        assert windows == [[*ids[:head], *part, ids[-1]] for part in parts]
        assert len(windows) > 3


def _rewrite(folder: Path, file: str, **changes: Any) -> None:
    content = json.loads((folder / file).read_text("utf-8"))
    kept = {key: value for key, value in (content | changes).items() if value is not ...}
    (folder / file).write_text(json.dumps(kept), "utf-8")


def _bert(folder: Path) -> Path:
    return build_checkpoint(folder, "e5", num_hidden_layers=1)


def test_truncation_and_padding_of_the_file_are_switched_off(tmp_path: Path) -> None:
    build_checkpoint(tmp_path, "minilm", num_hidden_layers=1)
    raw = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))
    assert raw["truncation"]["max_length"] == 128
    assert raw["padding"]["strategy"] == {"Fixed": 128}
    tokenizer = tokenizer_of(tmp_path, ROWS)
    ids, cut = tokenizer.encode(["fox", "fox " * 200, "fox " * 300], 256)
    assert [len(row) for row in ids] == [3, 202, 256]
    assert cut == [2]
    assert Embedder.from_pretrained(tmp_path).max_seq_length == 256


@pytest.mark.parametrize("lower", [True, False, ...])
def test_vocab_txt_alone(lower: Any, tmp_path: Path) -> None:
    _bert(tmp_path)
    _rewrite(tmp_path, "tokenizer_config.json", do_lower_case=lower)
    (tmp_path / "tokenizer.json").unlink()
    ours, theirs = (
        tokenizer_of(tmp_path, ROWS),
        AutoTokenizer.from_pretrained(tmp_path),
    )
    texts = [*SENTENCES, "", "[SEP] The FOX", "Ünïcode"]
    ids, _ = ours.encode(texts, 64)
    assert ids == [_theirs(theirs, text, 64) for text in texts]
    upper, lowered = ours.encode(["FOX", "fox"], 8)[0]
    assert (upper == lowered) is (lower is not False)


def test_tokenizer_json_wins_over_vocab_txt(tmp_path: Path) -> None:
    _bert(tmp_path)
    before = tokenizer_of(tmp_path, ROWS).encode(SENTENCES, 64)
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n", "utf-8")
    assert tokenizer_of(tmp_path, ROWS).encode(SENTENCES, 64) == before


def test_no_tokenizer(tmp_path: Path) -> None:
    _bert(tmp_path)
    for name in ("tokenizer.json", "vocab.txt"):
        (tmp_path / name).unlink()
    with pytest.raises(TokenizerError, match=r"neither tokenizer\.json nor vocab\.txt"):
        Embedder.from_pretrained(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": "1.0"}', '{"model": {"type": 3}}'])
def test_damaged_tokenizer(content: str, tmp_path: Path) -> None:
    _bert(tmp_path)
    (tmp_path / "tokenizer.json").write_text(content, "utf-8")
    with pytest.raises(TokenizerError, match=r"tokenizer\.json is not a usable tokenizer"):
        Embedder.from_pretrained(tmp_path)


def test_damaged_settings(tmp_path: Path) -> None:
    _bert(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{", "utf-8")
    with pytest.raises(ConfigError, match=r"tokenizer_config\.json is not JSON"):
        Embedder.from_pretrained(tmp_path)


def test_more_ids_than_the_embedding_has_rows(tmp_path: Path) -> None:
    _bert(tmp_path)
    largest = max(tokenizer_of(tmp_path, ROWS).rust.get_vocab().values())
    tokenizer_of(tmp_path, largest + 1)
    with pytest.raises(TokenizerError, match=f"ids up to {largest}, .* only {largest} rows"):
        tokenizer_of(tmp_path, largest)


@pytest.mark.parametrize(
    ("variant", "sentence_bert", "tokenizer_says", "served"),
    [
        ("nomic-v1.5", 8192, 512, 8192),  # sentence-transformers' file wins
        ("nomic-v1.5", 300, 512, 300),
        ("nomic-v1.5", ..., 512, 512),
        ("nomic-v1.5", ..., 1e30, 2048),  # 1e30 means none: that of config.json
        ("nomic-v1.5", ..., int(1e30), 2048),
        ("nomic-v1.5", ..., ..., 2048),
        ("nomic-v1.5", ..., 8192, 2048),
        ("nomic-v1.5", None, 2048, 2048),
        ("e5", 1000, 512, 512),  # there are 512 learned positions
        ("e5", ..., 1e30, 512),
        ("e5", 128, 512, 128),
    ],
)
def test_max_seq_length(
    variant: str, sentence_bert: Any, tokenizer_says: Any, served: int, tmp_path: Path
) -> None:
    build_checkpoint(tmp_path, variant, num_hidden_layers=1)
    _rewrite(tmp_path, "sentence_bert_config.json", max_seq_length=sentence_bert)
    _rewrite(tmp_path, "tokenizer_config.json", model_max_length=tokenizer_says)
    assert Embedder.from_pretrained(tmp_path).max_seq_length == served
    if sentence_bert != 1000:  # there sentence-transformers would fail with a long text
        assert SentenceTransformer(str(tmp_path), device="cpu").max_seq_length == served


def test_a_rotary_model_has_the_limit_of_sentence_transformers(tmp_path: Path) -> None:
    build_checkpoint(tmp_path, "nomic-v1.5", dialect="native", num_hidden_layers=1)
    embedder = Embedder.from_pretrained(tmp_path)
    assert embedder.model.config.max_position_embeddings == 2048
    assert embedder.max_seq_length == 8192


@pytest.mark.parametrize("lower", [True, False])
def test_tokenizer_config_overrides_case(lower: bool, tmp_path: Path) -> None:
    """transformers also lets it override tokenizer.json."""
    _bert(tmp_path)
    _rewrite(tmp_path, "tokenizer_config.json", do_lower_case=lower)
    ours, theirs = (
        tokenizer_of(tmp_path, ROWS),
        AutoTokenizer.from_pretrained(tmp_path),
    )
    ids, _ = ours.encode(["The FOX", "fox"], 16)
    assert ids == [_theirs(theirs, text, 16) for text in ("The FOX", "fox")]
    assert (ours.encode(["FOX"], 8) == ours.encode(["fox"], 8)) is lower


def test_sentence_transformers_may_ask_for_lower_case(tmp_path: Path) -> None:
    """It lowers texts, but not the special tokens in them, before the tokenizer's own steps."""
    _bert(tmp_path)
    _rewrite(tmp_path, "tokenizer_config.json", do_lower_case=False)
    cased = Embedder(tmp_path)
    assert not np.array_equal(cased.encode("FOX"), cased.encode("fox"))
    _rewrite(tmp_path, "sentence_bert_config.json", do_lower_case=True)
    lowered = Embedder(tmp_path)
    assert np.array_equal(lowered.encode("FOX"), cased.encode("fox"))
    texts = ["a FOX [MASK] in [SEP] Ünïcode", "[mask] İSTANBUL ΟΔΟΣ", "FOX jumps " * 300]
    lowered.max_seq_length = 40
    lowered.save_pretrained(tmp_path / "saved")
    for folder in (tmp_path, tmp_path / "saved"):
        theirs = SentenceTransformer(str(folder), device="cpu")
        theirs.max_seq_length = 40
        ids, _ = lowered.tokenizer.encode(texts, 40)
        assert ids == [list(theirs.tokenize([text])["input_ids"][0]) for text in texts]
