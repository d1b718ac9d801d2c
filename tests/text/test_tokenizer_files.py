"""Token ids of drawn and of chosen settings against transformers; settings that are refused."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from transformers import AutoTokenizer

from nomicbert import Embedder
from nomicbert.errors import NomicBertError, TokenizerError
from nomicbert.loading.folder import read_folder
from nomicbert.text.tokenizer import Tokenizer
from tests.support.checkpoints import build_checkpoint
from tests.support.tokenizer_settings import PAIRS, TEXTS, draw

ROWS = 1024
DRAWS, SLICES = 240, 6
TOKEN = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False}


# config.json of both model types, besides the model type
SIZES = {
    "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8,
    "max_position_embeddings": 64, "type_vocab_size": 2, "layer_norm_epsilon": 1e-12,
    "n_embd": 8, "n_layer": 1, "n_head": 2, "activation_function": "gelu",
    "rotary_emb_fraction": 1.0, "rotary_emb_base": 1000,
}  # fmt: skip


def tokenizer_of(folder: Path) -> Tokenizer:
    """The tokenizer of a folder that has tokenizer files and a config.json, but no weights."""
    path = folder / "config.json"
    path.write_text(json.dumps(SIZES | json.loads(path.read_text("utf-8"))), "utf-8")
    return Tokenizer.from_settings(read_folder(folder).tokenizer, ROWS)


def assert_same(ours: Tokenizer, theirs: Any, limits: tuple[int, ...] = (7, 100_000)) -> None:
    for limit in limits:
        wanted = [theirs(text, truncation=True, max_length=limit)["input_ids"] for text in TEXTS]
        assert ours.encode(TEXTS, limit)[0] == wanted
        for pair in PAIRS:
            found = theirs(*pair, truncation=True, max_length=limit + 3)
            types = found.get("token_type_ids", [0] * len(found["input_ids"]))
            assert ours.encode_pairs([pair], limit + 3)[:2] == ([found["input_ids"]], [types])


@pytest.mark.parametrize("first", range(0, DRAWS, DRAWS // SLICES))
def test_drawn_settings_give_the_ids_of_transformers_or_an_error(
    first: int, tmp_path: Path
) -> None:
    """Also after saving; most of the drawn settings load."""
    loaded = 0
    for seed in range(first, first + DRAWS // SLICES):
        folder, again = tmp_path / str(seed), tmp_path / f"{seed}-saved"
        for path in (folder, again):
            path.mkdir()
        draw(folder, seed)
        try:
            ours = tokenizer_of(folder)
        except NomicBertError:
            continue
        loaded += 1
        assert_same(ours, AutoTokenizer.from_pretrained(folder))
        ours.save(again)
        (again / "config.json").write_text((folder / "config.json").read_text("utf-8"), "utf-8")
        assert_same(tokenizer_of(again), AutoTokenizer.from_pretrained(again), (100_000,))
        assert tokenizer_of(again).encode(TEXTS, 50) == ours.encode(TEXTS, 50)
    assert loaded > DRAWS // SLICES // 2


def change(folder: Path, file: str, **changes: Any) -> None:
    path = folder / file
    content = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    kept = {key: value for key, value in (content | changes).items() if value is not ...}
    path.write_text(json.dumps(kept), "utf-8")


def checkpoint(folder: Path, variant: str = "e5") -> Path:
    return build_checkpoint(folder, variant, num_hidden_layers=1)


SEQUENCE = {"type": "Sequence", "normalizers": [
    {"type": "NFC"},
    {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
     "strip_accents": None, "lowercase": True}]}  # fmt: skip


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("added_tokens.json", {"<ent>": 378, "[NEW]": 379}),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {"378": {"content": "<ent>", **TOKEN}}},
        ),
        ("tokenizer_config.json", {"additional_special_tokens": ["<ent>", "<x>"]}),
        ("tokenizer_config.json", {"extra_special_tokens": {"image_token": "<ent>"}}),
        ("tokenizer_config.json", {"image_token": "<ent>"}),
        ("tokenizer_config.json", {"image_token": {"content": "<ent>", "__type": "AddedToken"}}),
        ("special_tokens_map.json", {"image_token": {"content": "<ent>"}}),
        ("special_tokens_map.json", {"mask_token": "<ent>", "image_token": "<x>"}),
        ("tokenizer.json", {"post_processor": None}),
        ("tokenizer.json", {"normalizer": None}),
        ("tokenizer.json", {"normalizer": SEQUENCE}),
        ("tokenizer_config.json", {"do_lower_case": False, "strip_accents": True}),
        ("tokenizer_config.json", {"split_special_tokens": True}),
        ("tokenizer_config.json", {"truncation_side": "left"}),
        ("tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"}),
        ("tokenizer_config.json", {"tokenizer_class": "DistilBertTokenizer"}),
        ("config.json", {"tokenizer_class": "TokenizersBackend"}),
    ],
)
@pytest.mark.filterwarnings("ignore::nomicbert.TruncationWarning")
def test_vectors_follow_the_settings(file: str, changes: dict[str, Any], tmp_path: Path) -> None:
    """sentence-transformers is the judge; most settings move a vector of these texts."""
    checkpoint(tmp_path, "nomic-v1.5")  # its embedding has six rows more than the vocabulary
    change(tmp_path, "sentence_bert_config.json", max_seq_length=32)
    plain = Embedder(tmp_path)
    change(tmp_path, file, **changes)
    texts = [
        "a <ent> and <x>, [NEW]",
        "[SEP] in a [MASK]",
        "Ünïcode FOX",
        "fox jump " * 60 + "river",
    ]
    found = Embedder(tmp_path).encode(texts, prompt="")
    theirs = SentenceTransformer(str(tmp_path), device="cpu").encode(texts)
    np.testing.assert_allclose(found, theirs, atol=2e-6)
    if not {"normalizer", "post_processor", "tokenizer_class"} & set(changes):
        assert np.abs(found - plain.encode(texts, prompt="")).max() > 1e-3


def test_an_object_that_is_not_marked_as_a_token(tmp_path: Path) -> None:
    """transformers takes it for a setting of the checkpoint's own."""
    checkpoint(tmp_path, "bge-en")
    plain = Embedder(tmp_path).encode("a fox jumps")
    for value in ({"content": "ox"}, {"content": "ox", "special": True, "other": 1}):
        change(tmp_path, "tokenizer_config.json", image_token=value)
        theirs = SentenceTransformer(str(tmp_path), device="cpu").encode("a fox jumps")
        np.testing.assert_allclose(Embedder(tmp_path).encode("a fox jumps"), theirs, atol=2e-6)
        np.testing.assert_allclose(theirs, plain, atol=2e-6)


def test_a_left_cut_keeps_the_end_of_both_texts_of_a_pair(tmp_path: Path) -> None:
    checkpoint(tmp_path)
    change(tmp_path, "tokenizer_config.json", truncation_side="left")
    assert_same(tokenizer_of(tmp_path), AutoTokenizer.from_pretrained(tmp_path), (5, 9))


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        (
            "tokenizer_config.json",
            {"tokenizer_class": "BertJapaneseTokenizer"},
            "'BertJapaneseTokenizer' is not supported; supported are BertTokenizer, ",
        ),
        ("tokenizer_config.json", {"tokenizer_class": "Mine"}, "'Mine' is not supported"),
        ("tokenizer_config.json", {"tokenizer_class": 3}, "tokenizer_class must be a name"),
        (
            "tokenizer_config.json",
            {"tokenizer_class": "XLMRobertaTokenizer"},
            "holds a WordPiece model, but the tokenizer_class .* needs Unigram",
        ),
        ("tokenizer_config.json", {"unk_token": "<unk>"}, "lacks '<unk>', the token for unknown"),
        ("tokenizer_config.json", {"unk_token": None}, "lacks 'unk_token', the token for unknown"),
        ("tokenizer_config.json", {"cls_token": "<s>"}, "lacks '<s>', the cls_token around every"),
        ("tokenizer_config.json", {"sep_token": None}, "lacks 'sep_token', the sep_token around"),
        ("tokenizer_config.json", {"mask_token": 5}, "states the token 5: that is neither a text"),
        ("tokenizer_config.json", {"truncation_side": "up"}, "must be left or right, not 'up'"),
        ("tokenizer_config.json", {"model_input_names": 3}, "model_input_names must be a list"),
        ("tokenizer_config.json", {"added_tokens_decoder": [1]}, "must be an object, not \\[1\\]"),
        (
            "tokenizer_config.json",
            {"fast_tokenizer_files": ["tokenizer.4.0.0.json"]},
            "fast_tokenizer_files = .* is not supported",
        ),
        (
            "added_tokens.json",
            {"<Ent>": 378, "<ENT>": 379},
            "'<Ent>' and '<ENT>' have the same normalised form, '<ent>'",
        ),
    ],
)
def test_refused_settings(file: str, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    checkpoint(tmp_path)
    (tmp_path / "special_tokens_map.json").unlink()  # it would override tokenizer_config.json
    change(tmp_path, file, **changes)
    with pytest.raises(NomicBertError, match=message):
        Embedder(tmp_path)


@pytest.mark.parametrize("gone", ["[UNK]", "[CLS]", "[SEP]"])
def test_a_vocab_txt_of_another_kind_is_refused_at_load(gone: str, tmp_path: Path) -> None:
    checkpoint(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    change(tmp_path, "tokenizer_config.json", added_tokens_decoder=...)
    path = tmp_path / "vocab.txt"
    path.write_text(path.read_text("utf-8").replace(gone, "<s>"), "utf-8")
    with pytest.raises(TokenizerError, match=rf"vocab\.txt lacks '\{gone}"):
        Embedder(tmp_path)


@pytest.mark.parametrize("name", ["PreTrainedTokenizerFast", "XLMRobertaTokenizer"])
def test_a_class_that_needs_tokenizer_json(name: str, tmp_path: Path) -> None:
    checkpoint(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    change(tmp_path, "tokenizer_config.json", tokenizer_class=name)
    with pytest.raises(TokenizerError, match=r"has no tokenizer\.json, which its tokenizer_c"):
        Embedder(tmp_path)


def test_xlm_roberta_with_another_unknown_token(tmp_path: Path) -> None:
    """transformers sets the unknown token's id to 3, whatever the file says."""
    checkpoint(tmp_path, "nomic-v2-moe")
    raw = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))
    change(tmp_path, "tokenizer.json", model={**raw["model"], "unk_id": 0})
    with pytest.raises(TokenizerError, match=r"unknown characters into the ids \[0\], but a token"):
        Embedder(tmp_path)


def test_bpe_dropout_is_refused(tmp_path: Path) -> None:
    checkpoint(tmp_path)
    change(tmp_path, "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}
    change(tmp_path, "tokenizer.json", model={**model, "dropout": 0.1}, added_tokens=[])
    with pytest.raises(TokenizerError, match=r"dropout = 0\.1.*, which draws ids at random"):
        Embedder(tmp_path)


def test_a_character_without_an_id_is_refused_at_load(tmp_path: Path) -> None:
    checkpoint(tmp_path, "nomic-v2-moe")
    raw = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))
    change(tmp_path, "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    change(tmp_path, "tokenizer.json", model={**raw["model"], "unk_id": None})
    with pytest.raises(TokenizerError, match="unknown token but `unk_id` is missing"):
        Embedder(tmp_path)


@pytest.mark.parametrize("name", ["model_max_length", "truncation_side", "lower_case", "pad_token"])
def test_attributes_of_other_tokenizers_cannot_be_set_in_vain(name: str, tmp_path: Path) -> None:
    tokenizer = Embedder(checkpoint(tmp_path)).tokenizer
    with pytest.raises(AttributeError, match=name):
        setattr(tokenizer, name, 6)


def test_copies_and_workers_split_special_tokens_too(tmp_path: Path) -> None:
    """The library's own state leaves the setting out."""
    checkpoint(tmp_path)
    change(tmp_path, "tokenizer_config.json", split_special_tokens=True)
    embedder, texts = Embedder(tmp_path), ["a [SEP] b", "[MASK]"]
    wanted = embedder.tokenizer.encode(texts, 20)
    for again in (copy.deepcopy(embedder), pickle.loads(pickle.dumps(embedder))):
        assert again.tokenizer.encode(texts, 20) == wanted
    here, there = embedder.encode(texts), embedder.encode(texts, device=["cpu"])
    np.testing.assert_allclose(there, here, atol=1e-6)


def test_the_older_name_of_the_limit(tmp_path: Path) -> None:
    """transformers reads it only where the newer one is missing."""
    checkpoint(tmp_path)
    change(tmp_path, "sentence_bert_config.json", max_seq_length=...)
    change(tmp_path, "tokenizer_config.json", max_len=99, model_max_length=77)
    assert Embedder(tmp_path).max_seq_length == 77
    change(tmp_path, "tokenizer_config.json", model_max_length=...)
    assert Embedder(tmp_path).max_seq_length == 99
    assert SentenceTransformer(str(tmp_path), device="cpu").max_seq_length == 99


def test_special_tokens_that_are_not_around_a_text(tmp_path: Path) -> None:
    """Only such tokenizers can be cut and packed."""
    checkpoint(tmp_path)
    change(tmp_path, "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    erased = {"type": "Replace", "pattern": {"String": "a"}, "content": ""}
    change(tmp_path, "tokenizer.json", normalizer=erased)
    with pytest.raises(TokenizerError, match="does not put its special tokens around a text"):
        Embedder(tmp_path)
    raw = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))
    same = {"id": "a", "ids": [raw["model"]["vocab"]["a"]], "tokens": ["a"]}
    frame = raw["post_processor"]
    frame["special_tokens"]["a"] = same
    frame["pair"].append({"SpecialToken": {"id": "a", "type_id": 1}})
    change(tmp_path, "tokenizer.json", normalizer=None, post_processor=frame)
    theirs = AutoTokenizer.from_pretrained(tmp_path)  # a token of the frame may be one of a text
    (found,) = Embedder(tmp_path).tokenizer.encode_pairs([("a", "a dog")], 20)[0]
    assert found == theirs("a", "a dog")["input_ids"]


def put_around(folder: Path, single: str, pair: str) -> Path:
    """A checkpoint whose texts "A" and "B" have these special tokens around them."""
    checkpoint(folder)
    change(folder, "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    pieces = [[piece.partition(":") for piece in form.split()] for form in (single, pair)]
    frame = json.loads((folder / "tokenizer.json").read_text("utf-8"))["post_processor"]
    frame["single"], frame["pair"] = (
        [
            {
                "Sequence" if name in "AB" else "SpecialToken": {
                    "id": name,
                    "type_id": int(kind or 0),
                }
            }
            for name, _, kind in form
        ]
        for form in pieces
    )
    change(folder, "tokenizer.json", post_processor=frame)
    return folder


PAIR = "[CLS] A [SEP] B:1 [SEP]:1"


@pytest.mark.parametrize("single", ["[CLS] A A [SEP]", "[CLS] A [SEP] A", "[CLS] [SEP]", ""])
def test_a_text_that_is_repeated_or_missing(single: str, tmp_path: Path) -> None:
    """Cut to a length, a repetition would not have the ids of transformers."""
    with pytest.raises(TokenizerError, match=r"tokenizer\.json does not put its special tokens ar"):
        Embedder(put_around(tmp_path, single, PAIR))


def test_type_ids_of_a_single_text(tmp_path: Path) -> None:
    """A text's vector has them all 0."""
    put_around(tmp_path, "[CLS] A:1 [SEP]", PAIR)
    change(tmp_path, "tokenizer_config.json", model_input_names=["input_ids"])
    assert Embedder(tmp_path).tokenizer.prefix
    change(tmp_path, "tokenizer_config.json", model_input_names=["input_ids", "token_type_ids"])
    with pytest.raises(TokenizerError, match=r"tokenizer\.json gives a single text type ids other"):
        Embedder(tmp_path)


@pytest.mark.parametrize("single", ["[CLS] B [SEP]", "[CLS] [gone] A"])
def test_a_frame_that_makes_the_library_panic(single: str, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"tokenizer\.json is not a usable tokenizer: "):
        Embedder(put_around(tmp_path, single, PAIR))


@pytest.mark.parametrize(
    "pair", ["[CLS] B [SEP] A", "[CLS] A [SEP]", "[CLS] A B A [SEP]", "[CLS] A:0 [SEP] B:7 [SEP]"]
)
def test_pairs_whose_texts_are_not_there_once_in_order(pair: str, tmp_path: Path) -> None:
    tokenizer = Embedder(put_around(tmp_path, "[CLS] A [SEP]", pair)).tokenizer
    with pytest.raises(TokenizerError, match=r"json does not put its special tokens around two te"):
        tokenizer.encode_pairs([("fox", "dog")], 20)
