"""Tokenizer files that ask for endless work or memory, or make the library panic: errors."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sentence_transformers import SentenceTransformer
from transformers import AutoTokenizer

from nomicbert import CrossEncoder, Embedder
from nomicbert.describe import describe
from nomicbert.errors import ConfigError, NomicBertError, TokenizerError
from nomicbert.text.tokenizer_limits import check
from tests.support.checkpoints import build_checkpoint
from tests.support.rerankers import build_reranker
from tests.support.vocabularies import SENTENCES, unigram

ROWS = 1024
ROOT = Path(__file__).parents[2]
TOKEN = {"id": 5, "single_word": False, "lstrip": False, "rstrip": False, "normalized": True,
         "special": False}  # fmt: skip
# Loads folders one after the other, with 2 GB more to take; prints each error's class and text.
LOADER = """
import json, resource, sys
from pathlib import Path
from nomicbert.loading.folder import TokenizerSettings
from nomicbert.loading.json_settings import optional
from nomicbert.text.tokenizer import Tokenizer
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2 * 10**9,) * 2)
for name in sys.argv[1:]:
    folder = Path(name)
    stated = optional(folder / "tokenizer_config.json")
    settings = TokenizerSettings(folder, stated.raw["tokenizer_class"], stated, False)
    try:
        Tokenizer.from_settings(settings, 1024).encode(["a fox é"], 64)
        print(json.dumps([folder.name, "loaded"]), flush=True)
    except BaseException as error:
        text = f"{type(error).__name__}: {error}"
        print(json.dumps([folder.name, text.replace(name, "")]), flush=True)
"""


def several(key: str, part: dict[str, Any], count: int) -> dict[str, Any]:
    return {"type": "Sequence", key: [part] * count}


def nested(key: str, part: dict[str, Any], depth: int) -> dict[str, Any]:
    for _ in range(depth):
        part = several(key, part, 1)
    return part


def replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def normalizers(part: dict[str, Any], count: int) -> dict[str, Any]:
    return {"normalizer": several("normalizers", part, count)}


def splitters(part: dict[str, Any], count: int) -> dict[str, Any]:
    return {"pre_tokenizer": several("pretokenizers", part, count)}


def charsmap(stated: int, units: int, texts: bytes) -> dict[str, Any]:
    table = stated.to_bytes(4, "little") + bytes(4 * units) + texts
    text = base64.b64encode(table).decode()
    return {"normalizer": {"type": "Precompiled", "precompiled_charsmap": text}}


def split(regex: str) -> dict[str, Any]:
    part = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
    return {"pre_tokenizer": part}


def model(**changes: Any) -> dict[str, Any]:
    return {"model": json.loads(unigram().to_str())["model"] | changes}


def wordpiece(**changes: Any) -> dict[str, Any]:
    vocab = {"[UNK]": 0, "a": 1}
    settings = {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##"}
    content = {**settings, "max_input_chars_per_word": 100, "vocab": vocab} | changes
    return {"model": content, "added_tokens": []}


LOWER, BYTES = {"type": "Lowercase"}, {"type": "ByteLevel"}
SPLIT_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
MANY, GROWS = "has more than 100 parts", "may make more than 200 characters of one"
# What tokenizer.json states in place of its own, and the end of the message.
ENDLESS: dict[str, tuple[dict[str, Any], str]] = {
    "doubled 60 times": (normalizers(replace({"String": "a"}, "aa"), 60), GROWS),
    "composed and decomposed": (
        {"normalizer": {"type": "Sequence", "normalizers": [
            replace({"String": "\u0635"}, "\ufdfa"), {"type": "NFKC"}] * 5}}, GROWS,
    ),
    "more than a float holds": (normalizers(replace({"Regex": "x?"}, "a" * 10**5), 90), GROWS),
    "between all characters": (normalizers(replace({"Regex": "(?=.)"}, "aaaa"), 5), GROWS),
    "for an empty text": (normalizers(replace({"String": ""}, "aaaa"), 5), GROWS),
    "long replacement": ({"normalizer": replace({"String": "a"}, "b" * 5000)}, GROWS),
    "long prefix": ({"normalizer": {"type": "Prepend", "prepend": "b" * 5000}}, GROWS),
    "a replacement named a sequence": (
        normalizers({**replace({"String": "a"}, "aa"), "normalizers": []}, 60), GROWS,
    ),
    "bytes of bytes": (normalizers(BYTES, 60), GROWS),
    "split into bytes of bytes": (splitters(SPLIT_BYTES, 60), GROWS),
    "both together": (normalizers(BYTES, 3) | splitters(SPLIT_BYTES, 2), GROWS),
    "100,000 normalizers": (normalizers(LOWER, 100_000), "normalizer " + MANY),
    "100,000 prefixes": (normalizers({"type": "Prepend", "prepend": "a"}, 100_000), MANY),
    "100,000 pre-tokenizers": (splitters({"type": "Whitespace"}, 100_000), "pre_tokenizer " + MANY),
    "nested normalizers": ({"normalizer": nested("normalizers", LOWER, 120)}, MANY),
    "nested beyond Python's stack": (
        {"normalizer": "NESTED"}, "is not a usable tokenizer: maximum recursion depth exceeded",
    ),
    "nested post-processors": (
        {"post_processor": nested("processors", {"type": "ByteLevel"}, 120)}, MANY,
    ),
    "a normalizer as a list": ({"normalizer": ["aa"]}, "a normalizer must be an object, not ['aa"),
    "a table larger than its data": (
        charsmap(2**32 - 4, 2, b"a"), "its trie of 4,294,967,292 bytes is not in its 13 bytes",
    ),
    "a table of nothing": (charsmap(0, 0, b""), "its trie of 0 bytes is not in its 4 bytes"),
    "a table of long texts": (charsmap(8, 2, b"a\0" + b"b" * 5000), GROWS),
    "a table that is no base64": (
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "?"}},
        "precompiled_charsmap is damaged: ",
    ),
    "a table that is no text": (
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": 7}},
        "precompiled_charsmap is damaged: ",
    ),
    "exponential time": (split(r"(\w+\s?)+$"), "repeats a group with repetitions or altern"),
    "exponential alternatives": (split("(?:a|a)*$"), "repeats a group with repetitions or altern"),
    "cubic time": (split(r"(?=\w*\w*!)x|."), "several repetitions before something that must mat"),
    "cubic replacement": (
        {"normalizer": replace({"Regex": "a{1,99}a{1,99}a{1,99}b"}, "")}, "several repetitions bef",
    ),
    "a long regex": (split("a" * 9000), "has 9,000 characters"),
    "a long pattern": ({"normalizer": replace({"String": "a" * 9000}, "")}, "9,000 characters"),
    "fixed length of 0": (
        {"pre_tokenizer": {"type": "FixedLength", "length": 0}}, "chunk size must be non-zero",
    ),
    "a frame of 10,000 texts": (
        {"post_processor": {"type": "TemplateProcessing", "special_tokens": {}, "pair": [],
                            "single": [{"Sequence": {"id": "A", "type_id": 0}}] * 10_000}},
        "puts too much around a text",
    ),
    "60,000 added tokens": (
        {"added_tokens": [{**TOKEN, "content": f"t{i}"} for i in range(60_000)]},
        "adds 60,000 tokens of up to 6 characters; supported are 50,000 of up to 1,000",
    ),
    "a long added token": (
        {"added_tokens": [{**TOKEN, "content": "a" * 10**6}]}, "1 tokens of up to 1,000,000 char",
    ),
    "added tokens that grow": (
        {"normalizer": replace({"String": "t"}, "b" * 90),
         "added_tokens": [{**TOKEN, "content": f"t{i}"} for i in range(40_000)]},
        "characters once they are normalised",
    ),
    "a long piece": (
        model(vocab=[["<unk>", 0.0], ["a" * 10**6, -1.0]], unk_id=0), "up to 1,000,000 characters",
    ),
    "long pieces": (
        model(vocab=[["<unk>", 0.0], *([f"{i:0900}", -1.0] for i in range(9000))], unk_id=0),
        "its 9,001 pieces have 8,100,005 bytes",
    ),
    "words of any length": (
        wordpiece(max_input_chars_per_word=10**6), "= 1000000 is not supported, at most 1000 is",
    ),
    "a long prefix of a piece": (
        wordpiece(continuing_subword_prefix="#" * 10**6), "_prefix has 1,000,000 characters",
    ),
    "a long suffix of a piece": (
        wordpiece(end_of_word_suffix="#" * 10**6), "_suffix has 1,000,000 characters",
    ),
    "two tokens of one id": (wordpiece(vocab={"[UNK]": 0, "a": 1, "b": 1}), "have the same id"),
    "an id beyond 32 bits": (wordpiece(vocab={"[UNK]": 0, "a": 2**40}), "up to 1099511627776, but"),
    "an id below 0": (wordpiece(vocab={"[UNK]": 0, "a": -1}), "not a usable tokenizer"),
    "an id beyond the embedding": (
        wordpiece(vocab={"[UNK]": 0, "a": 2**31}), "has ids up to 2147483648, but the embedding",
    ),
    "a frame beyond the embedding": (
        {"post_processor": {"type": "BertProcessing", "sep": ["x", 2**31], "cls": ["x", 0]}},
        "has ids up to 2147483648, but the embedding",
    ),
    "an added token of another id": (
        {"added_tokens": [{**TOKEN, "id": 2**31, "content": "<x>"}]},
        "states the id 2147483648 for the added token '<x>', which would get 442",
    ),
    "merges of no tokens": (
        {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}}, "out of vocabulary",
    ),
    "a merge shorter than the prefix": (
        {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]],
                   "continuing_subword_prefix": "######"}},
        "is not a usable tokenizer: ",
    ),
}  # fmt: skip
# What the library itself bounds or the package never uses.
HARMLESS: dict[str, dict[str, Any]] = {
    "padding to 2^40": {"padding": {
        "strategy": {"Fixed": 2**40}, "direction": "Right", "pad_to_multiple_of": None,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"}},
    "truncation to 2^40": {"truncation": {
        "direction": "Right", "max_length": 2**40, "strategy": "LongestFirst", "stride": 2**39}},
    "100 normalizers": normalizers(LOWER, 99),
}  # fmt: skip


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What came of each file, in another process: name -> "loaded" or class and text of an error.

    Without the bounds, a case would end the process or not end at all.
    """
    top, content = tmp_path_factory.mktemp("endless"), json.loads(unigram().to_str())
    changes = {name: change for name, (change, _) in ENDLESS.items()} | HARMLESS
    for name, change in changes.items():
        (top / name).mkdir()
        text = json.dumps(content | change)
        deep = '{"type": "Sequence", "normalizers": [' * 10**5 + "]}" * 10**5
        (top / name / "tokenizer.json").write_text(text.replace('"NESTED"', deep), "utf-8")
        stated = {"tokenizer_class": "PreTrainedTokenizerFast"}
        (top / name / "tokenizer_config.json").write_text(json.dumps(stated), "utf-8")
    done = subprocess.run(
        [sys.executable, "-c", LOADER, *(str(top / name) for name in changes)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([".", "kernels"])},
    )
    return dict(map(json.loads, done.stdout.splitlines()))


@pytest.mark.parametrize("name", ENDLESS)
def test_endless_work_is_refused(name: str, outcomes: dict[str, str]) -> None:
    found = outcomes[name]  # missing: this case, or one before it, has ended the process
    assert found.startswith("TokenizerError: ")
    assert ENDLESS[name][1] in found
    assert "tokenizer.json" in found


@pytest.mark.parametrize("name", HARMLESS)
def test_harmless_sizes_are_not_refused(name: str, outcomes: dict[str, str]) -> None:
    assert outcomes[name] == "loaded"


# Parts of tokenizers in use: their normalizers, pre-tokenizers, and growth.
SPACES = replace({"Regex": " {2,}"}, "▁")
IN_USE: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]], int]] = {
    "BERT": ([{"type": "BertNormalizer"}], [{"type": "BertPreTokenizer"}], 3),
    "XLM-R": ([SPACES], [{"type": "WhitespaceSplit"}, {"type": "Metaspace"}], 2),
    "ALBERT": (
        [replace({"String": "``"}, '"'), replace({"String": "''"}, '"'), {"type": "NFKD"},
         {"type": "StripAccents"}, LOWER, charsmap(8, 2, b"x" * 18 + b"\0")["normalizer"], SPACES],
        [{"type": "Metaspace"}], 36,
    ),
    "RoBERTa": ([], [SPLIT_BYTES], 5),
    "ModernBERT": ([{"type": "NFC"}], [SPLIT_BYTES], 5),
    "Llama": ([{"type": "Prepend", "prepend": "▁"}, replace({"String": " "}, "▁")], [], 2),
}  # fmt: skip


@pytest.mark.parametrize("name", IN_USE)
def test_tokenizers_in_use_are_within_the_bounds(name: str) -> None:
    normal, pre, growth = IN_USE[name]
    raw = {
        "normalizer": {"type": "Sequence", "normalizers": normal},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": pre},
    }
    assert check(Path("tokenizer.json"), raw) == growth


def test_half_a_million_pieces_may_have_more_bytes() -> None:
    """As many rows of an embedding stand behind them; XLM-R's 250,002 have 2 million bytes."""
    path = Path("tokenizer.json")
    check(path, {"model": {"vocab": [[f"{i:012}", -1.0] for i in range(500_000)]}})
    with pytest.raises(TokenizerError, match=r"4,500,000 bytes, .* supported are 4,000,000 and"):
        check(path, {"model": {"vocab": [[f"{i:018}", -1.0] for i in range(250_000)]}})


def checkpoint(folder: Path, variant: str = "e5", **changes: Any) -> Path:
    """A small checkpoint whose tokenizer.json states these values."""
    build_checkpoint(folder, variant, num_hidden_layers=1)
    content = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    (folder / "tokenizer.json").write_text(json.dumps(content | changes), "utf-8")
    if changes:
        state(folder, "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    return folder


def state(folder: Path, file: str, **changes: Any) -> None:
    path = folder / file
    content = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    path.write_text(json.dumps(content | changes), "utf-8")


def table_with(value: int) -> dict[str, Any]:
    """A normalizer that gives "z" the text at this place of its table's texts."""
    units = [0] * 512
    units[0] = 256 << 10  # the children of the root are at 256 ^ character
    here = 256 ^ ord("z")
    units[here] = ord("z") | 1 << 8 | (here ^ 1) << 10  # a leaf, whose value is at place 1
    units[1] = 1 << 31 | value
    trie = b"".join(unit.to_bytes(4, "little") for unit in units)
    text = base64.b64encode(len(trie).to_bytes(4, "little") + trie + "é\0fox\0".encode())
    return {"type": "Precompiled", "precompiled_charsmap": text.decode()}


@pytest.mark.parametrize("name", ["XLMRobertaTokenizer", "PreTrainedTokenizerFast"])
def test_a_compiled_table(name: str, tmp_path: Path) -> None:
    """transformers is the judge; and a copy for another process can be made."""
    checkpoint(tmp_path, "nomic-v2-moe", normalizer=table_with(3))
    state(tmp_path, "tokenizer_config.json", tokenizer_class=name)
    embedder = Embedder(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    texts = ["z in a z", *SENTENCES]
    found = [theirs(text)["input_ids"] for text in texts]
    assert found[0] != theirs("y in a y")["input_ids"]
    assert embedder.tokenizer.encode(texts, 100)[0] == found
    copied = embedder.encode(texts, device=["cpu"])
    assert abs(copied - embedder.encode(texts)).max() < 1e-6


@pytest.mark.parametrize("value", [1, 1000], ids=["within a character", "behind the texts"])
def test_a_table_that_makes_the_library_panic_at_a_text(value: int, tmp_path: Path) -> None:
    """Known only once the text is there; in another process too."""
    embedder = Embedder(checkpoint(tmp_path, "nomic-v2-moe", normalizer=table_with(value)))
    tokenizer, wrong = embedder.tokenizer, r"tokenizer\.json is not a usable tokenizer: "
    assert tokenizer.encode(["a fox"], 10)
    for call in (
        lambda: tokenizer.encode(["z"], 10),
        lambda: tokenizer.encode(["fox " * 40 + "z " * 400], 100),
        lambda: tokenizer.count(["z"]),
        lambda: tokenizer.encode_pairs([("a", "z")], 20),
        lambda: tokenizer.encode_windows(["z"], "", 20),
        lambda: embedder.encode(["z"]),
    ):
        with pytest.raises(TokenizerError, match=wrong):
            call()
    if value == 1:
        with pytest.raises(TokenizerError, match=wrong):
            embedder.encode(["fox", "z"], device=["cpu"])


def test_a_mistake_of_the_caller_is_no_error_of_the_file(tmp_path: Path) -> None:
    tokenizer = Embedder(checkpoint(tmp_path)).tokenizer
    with pytest.raises(TypeError):
        tokenizer.encode([b"fox"], 10)  # type: ignore[list-item]


def test_an_interrupt_is_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupted(self: Path) -> bytes:
        raise KeyboardInterrupt

    checkpoint(tmp_path)
    monkeypatch.setattr(Path, "read_bytes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Embedder(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"version": "1.0", "version": "1.0"}', "it states 'version' twice"),
        ('{"version": "1.0", "vers\\u0069on": 3}', "it states 'version' twice"),
        ('{"version": "1.0", }', "it is not a JSON object"),
        ('{"version": "1.0"} {', "it is not a JSON object"),
        ('{"version": }', "Expecting value"),
        ('{"model": {"type": "WordPiece"', "Expecting ',' delimiter"),
        ("[]", "it is not a JSON object"),
        ("\ufeff{}", "it is not a JSON object"),
        ('{"added_tokens": ' + "9" * 5000 + "}", "integer string conversion"),
        ('{"version": "' + "x" * 10**6 + '"}', "Unknown tokenizer version 'xxx"),
    ],
)
def test_damaged_json(text: str, message: str, tmp_path: Path) -> None:
    (checkpoint(tmp_path) / "tokenizer.json").write_text(text, "utf-8")
    with pytest.raises(TokenizerError, match=r"tokenizer\.json .*" + re.escape(message)) as caught:
        Embedder(tmp_path)
    assert len(str(caught.value)) < 600


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = checkpoint(tmp_path) / "tokenizer.json"
    path.write_bytes(path.read_bytes().replace(b'"fox"', b'"\xff"'))
    with pytest.raises(TokenizerError, match=r"tokenizer\.json is not a usable tokenizer: 'utf-8'"):
        Embedder(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.txt", "special_tokens_map.json"])
def test_what_is_no_file(name: str, tmp_path: Path) -> None:
    checkpoint(tmp_path)
    if name == "vocab.txt":
        (tmp_path / "tokenizer.json").unlink()
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    with pytest.raises(NomicBertError, match=re.escape(name)):
        Embedder(tmp_path)


@pytest.mark.parametrize(("name", "size"), [("tokenizer.json", 10**9), ("vocab.txt", 2 * 10**7)])
def test_files_beyond_any_vocabulary(name: str, size: int, tmp_path: Path) -> None:
    """Sparse, so without content: refused before they are read."""
    checkpoint(tmp_path)
    if name == "vocab.txt":
        (tmp_path / "tokenizer.json").unlink()
    os.truncate(tmp_path / name, size)
    with pytest.raises(TokenizerError, match=re.escape(name)):
        Embedder(tmp_path)


def test_more_values_than_any_vocabulary(tmp_path: Path) -> None:
    text = '{"model": [' + "{}," * 4_000_000 + "{}]}"
    (checkpoint(tmp_path) / "tokenizer.json").write_text(text, "utf-8")
    with pytest.raises(TokenizerError, match=r"tokenizer\.json holds more than 2,000,000 values"):
        Embedder(tmp_path)


@pytest.mark.parametrize(
    ("file", "key", "value", "message"),
    [
        ("tokenizer_config.json", "added_tokens_decoder", [1], "must be an object, not [1]"),
        ("tokenizer_config.json", "added_tokens_decoder", {"x": "a"}, "states 'x' as the id of a"),
        ("tokenizer_config.json", "added_tokens_decoder", {"-1": "a"}, "states '-1' as the id"),
        ("tokenizer_config.json", "added_tokens_decoder", {"9" * 400: "a"}, "as the id of a token"),
        ("tokenizer_config.json", "added_tokens_decoder", {"5": 7}, "states the token 7: that is"),
        ("tokenizer_config.json", "added_tokens_decoder", {"5": {"content": "a", "special": 1}},
         "states the token {"),
        ("tokenizer_config.json", "extra_special_tokens", "abc", "must be a list or an object"),
        ("tokenizer_config.json", "extra_special_tokens", [["a"]], "states the token ['a']: that"),
        ("tokenizer_config.json", "extra_special_tokens", {"a": {"b": "c"}}, "states the token {"),
        ("tokenizer_config.json", "extra_special_tokens", ["a\ud800"], "surrogates not allowed"),
        ("tokenizer_config.json", "additional_special_tokens", 5, "must be a list or an object"),
        ("tokenizer_config.json", "extra_special_tokens", [f"t{i}" for i in range(50_001)],
         "adds 50,006 tokens of up to 6"),
        ("tokenizer_config.json", "model_specific_special_tokens", [1], "must be an object"),
        ("tokenizer_config.json", "tokenizer_class", "B" * 10**6, "is not supported; supported"),
        ("special_tokens_map.json", "unk_token", [["a"]], "states the token [['a']]"),
        ("special_tokens_map.json", "extra_special_tokens", "abc", "must be a list or an object"),
        ("added_tokens.json", "<x>", "y", "states 'y' as the id of a token"),
        ("added_tokens.json", "<x>", -5, "states -5 as the id of a token"),
        ("added_tokens.json", "<x>", 10**400, "as the id of a token"),
        ("added_tokens.json", "<x>", 0.5, "states 0.5 as the id of a token"),
        ("added_tokens.json", "<x>", None, "states None as the id of a token"),
        ("added_tokens.json", "<x>" * 1000, 400, "adds 6 tokens of up to 3,000 characters"),
    ],
)  # fmt: skip
def test_settings_of_a_wrong_kind(
    file: str, key: str, value: Any, message: str, tmp_path: Path
) -> None:
    state(checkpoint(tmp_path), file, **{key: value})
    named = "tokenizer" if key == "tokenizer_class" else file.partition(".")[0]
    with pytest.raises(NomicBertError, match=re.escape(message)) as caught:
        Embedder(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert len(str(caught.value)) < 1000
    if "states the token" not in message and "adds" not in message:
        assert named in str(caught.value)


@pytest.mark.parametrize("limit", [1, 2])
def test_a_limit_without_room_for_a_token(limit: int, tmp_path: Path) -> None:
    """Either text is cut to nothing there, or not at all: both have lost what they say."""
    state(checkpoint(tmp_path), "sentence_bert_config.json", max_seq_length=limit)
    theirs = SentenceTransformer(str(tmp_path), device="cpu")
    lengths = {len(theirs.preprocess([text])["input_ids"][0]) for text in ("fox", "fox jumps")}
    assert lengths == ({3, 5} if limit == 1 else {2})
    message = rf"sentence_bert_config\.json limits texts to {limit} tokens, but .* more are 3"
    for load in (Embedder, describe):
        with pytest.raises(ConfigError, match=message):
            load(tmp_path)
    state(tmp_path, "sentence_bert_config.json", max_seq_length=3)
    assert Embedder(tmp_path).max_seq_length == describe(tmp_path).limit.tokens == 3


def test_a_limit_without_room_for_a_pair(tmp_path: Path) -> None:
    build_reranker(tmp_path)
    state(tmp_path, "sentence_bert_config.json", max_seq_length=3)
    with pytest.raises(ConfigError, match=r"limits texts to 3 tokens, but .* more are 4"):
        CrossEncoder(tmp_path)
    assert CrossEncoder(tmp_path, max_length=20).max_seq_length == 20
    state(tmp_path, "sentence_bert_config.json", max_seq_length=4)
    assert CrossEncoder(tmp_path).max_seq_length == 4
