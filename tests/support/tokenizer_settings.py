"""Draw tokenizer folders with every setting that may change an id, sensible or not.

Each folder has the files that transformers reads: tokenizer.json or vocab.txt, and
tokenizer_config.json, special_tokens_map.json, added_tokens.json; config.json names the model type.
"""

from __future__ import annotations

import functools
import json
import random
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers

from tests.support.vocabularies import WORDS, chinese_wordpiece, unigram, wordpiece

TEXTS = (
    "",
    "what is deep learning?",
    "The QUICK brown Fox, jumps over [SEP] the lazy [MASK] dog.",
    "a <ent> b<ENT>c <Ent>, <x>d <x> [unused7] [NEW]e </s>f <s> <unk> [UNK]",
    "北京大学 Ünïcode café naïve \u0301x ﬁne\x00 \t tab\nline  two",
    "search_query: who  was <y>  first<z> run-ning\U0010fffd",
)
PAIRS = tuple(zip(TEXTS[1:], TEXTS[-1:0:-1], strict=True))
TOKENS = (
    "<ent>",
    "<ENT>",
    "<x>",
    "<y>",
    "<z>",
    "[NEW]",
    "[unused7]",
    "fox",
    "learn",
    "[MASK]",
    " d",
)
NORMALIZERS = (
    None,
    {"type": "Lowercase"},
    {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": False,
     "strip_accents": False, "lowercase": False},
    {"type": "Sequence", "normalizers": [
        {"type": "NFKC"},
        {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
         "strip_accents": None, "lowercase": True}]},
)  # fmt: skip
NAMED = ("unk_token", "sep_token", "cls_token", "mask_token", "pad_token", "bos_token", "eos_token")
CLASSES = (
    "BertTokenizer", "BertTokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend",
    "DistilBertTokenizer", "ElectraTokenizerFast", "XLMRobertaTokenizer", "XLMRobertaTokenizerFast",
    "RobertaTokenizer", "BertJapaneseTokenizer", "AlbertTokenizer", "NoSuchTokenizer",
)  # fmt: skip


@functools.cache
def vocabularies() -> dict[str, str]:
    """tokenizer.json of each kind of model, as text."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(set("".join(WORDS)))]
    bpe = Tokenizer(
        models.BPE(
            vocab={piece: i for i, piece in enumerate([*pieces, "th", "the", "wh", "in"])},
            merges=[("t", "h"), ("th", "e"), ("w", "h"), ("i", "n")],
            unk_token="[UNK]",
        )
    )
    level = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*pieces, *WORDS])}, "[UNK]"))
    for tokenizer in (bpe, level):
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer.add_special_tokens(["[CLS]", "[SEP]"])
    built = {
        "WordPiece": wordpiece(), "Chinese": chinese_wordpiece(), "Unigram": unigram(),
        "BPE": bpe, "WordLevel": level,
    }  # fmt: skip
    return {kind: tokenizer.to_str() for kind, tokenizer in built.items()}


def _token(rng: random.Random, text: str, typed: bool) -> Any:
    """A token as a text or as an object of random properties."""
    if rng.random() < 0.4 and not typed:
        return text
    flags = ("single_word", "lstrip", "rstrip", "normalized")
    token: dict[str, Any] = {"content": text, **{flag: rng.random() < 0.4 for flag in flags}}
    if typed or rng.random() < 0.5:
        token["special"] = rng.random() < 0.5
    return token


def _typed(rng: random.Random, text: str) -> Any:
    token = _token(rng, text, typed=False)
    return {"__type": "AddedToken", **token} if isinstance(token, dict) else token


def _some(rng: random.Random, most: int = 4) -> list[str]:
    return rng.sample(TOKENS, rng.randint(1, most))


def _tokenizer_json(rng: random.Random, kind: str) -> dict[str, Any]:
    raw: dict[str, Any] = json.loads(vocabularies()[kind])
    if rng.random() < 0.3:
        raw["post_processor"] = None
    if rng.random() < 0.4:
        raw["normalizer"] = rng.choice(NORMALIZERS)
    if rng.random() < 0.3:
        raw["truncation"] = {"direction": rng.choice(["Left", "Right"]), "max_length": 9,
                             "strategy": "LongestFirst", "stride": 0}  # fmt: skip
    if rng.random() < 0.3:
        first = len(raw["model"]["vocab"])
        raw["added_tokens"] += [
            {"id": first + i, "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": rng.random() < 0.5, "special": rng.random() < 0.5, "content": text}
            for i, text in enumerate(["<ent>", "<x>"])
        ]  # fmt: skip
    if rng.random() < 0.2:
        raw["added_tokens"] = []
    model = raw["model"]
    if model["type"] == "WordPiece" and rng.random() < 0.2:
        model["unk_token"] = rng.choice(["[UNK]", "fox", "<gone>"])
        model["max_input_chars_per_word"] = rng.choice([100, 4])
    if model["type"] == "Unigram" and rng.random() < 0.2:
        model["unk_id"] = rng.choice([3, 0, None])
    if model["type"] == "BPE" and rng.random() < 0.2:
        model["unk_token"] = rng.choice(["[UNK]", None, "<gone>"])
    return raw


def _config(rng: random.Random, kind: str) -> dict[str, Any]:
    config: dict[str, Any] = {}
    if rng.random() < 0.8:
        fitting = {"Unigram": CLASSES[6:8] + CLASSES[2:4], "BPE": CLASSES[2:4]}
        fitting["WordLevel"] = fitting["BPE"]
        names = fitting.get(kind, CLASSES[:6]) if rng.random() < 0.8 else CLASSES
        config["tokenizer_class"] = rng.choice(names)
    for key in ("do_lower_case", "tokenize_chinese_chars", "strip_accents", "add_prefix_space",
                "split_special_tokens", "add_bos_token", "add_eos_token"):  # fmt: skip
        if rng.random() < 0.25:
            config[key] = rng.random() < 0.5
    if rng.random() < 0.15:
        config["truncation_side"] = rng.choice(["left", "right"])
    if rng.random() < 0.15:
        config["model_input_names"] = ["input_ids", *rng.choice([["token_type_ids"], []])]
    for key in NAMED:
        if rng.random() < 0.12:
            text = rng.choice(["[UNK]", "[SEP]", "[CLS]", "<unk>", "<s>", "</s>", "<ent>", "fox"])
            config[key] = rng.choice([_typed(rng, text), text, None])
    if rng.random() < 0.2:
        config["image_token"] = _typed(rng, rng.choice(TOKENS))
    for key in ("additional_special_tokens", "extra_special_tokens"):
        if rng.random() < 0.25:
            texts = [_typed(rng, text) for text in _some(rng)]
            named = {f"{i}_token": text for i, text in enumerate(texts)}
            config[key] = named if key[0] == "e" and rng.random() < 0.4 else texts
    if rng.random() < 0.25:
        first = rng.choice([300, 378, 400, 544])
        config["added_tokens_decoder"] = {
            str(first + i): _token(rng, text, typed=True) for i, text in enumerate(_some(rng, 6))
        }
    return config


def draw(folder: Path, seed: int) -> str:
    """Write one drawn folder; return the kind of its vocabulary."""
    rng = random.Random(seed)
    kind = rng.choice(["WordPiece", "WordPiece", "Chinese", "Unigram", "BPE", "WordLevel"])
    files: dict[str, Any] = {
        "config.json": {"model_type": rng.choice(["bert", "nomic_bert"]), "vocab_size": 1024},
        "tokenizer_config.json": _config(rng, kind),
    }
    if kind in ("WordPiece", "Chinese") and rng.random() < 0.3:
        vocab: dict[str, int] = json.loads(vocabularies()[kind])["model"]["vocab"]
        lines = sorted(vocab, key=vocab.__getitem__)
        if rng.random() < 0.3:
            gone = rng.choice(["[UNK]", "[CLS]", "[SEP]", "[MASK]"])
            lines[lines.index(gone)] = rng.choice(["<s>", "<unk>"])
        (folder / "vocab.txt").write_text("\n".join(lines) + "\n", "utf-8")
    else:
        files["tokenizer.json"] = _tokenizer_json(rng, kind)
    if rng.random() < 0.1:
        del files["tokenizer_config.json"]
    if rng.random() < 0.2:
        files["config.json"]["tokenizer_class"] = rng.choice(CLASSES[:4])
    if rng.random() < 0.3:
        files["special_tokens_map.json"] = {
            key: _token(rng, rng.choice(["[SEP]", "[CLS]", "[UNK]", "<x>"]), typed=False)
            for key in NAMED
            if rng.random() < 0.2
        }
        if rng.random() < 0.4:
            key = rng.choice(["additional_special_tokens", "extra_special_tokens"])
            files["special_tokens_map.json"][key] = _some(rng)
    if rng.random() < 0.3:
        first = rng.choice([378, 442, 544, 700])
        files["added_tokens.json"] = {text: first + i for i, text in enumerate(_some(rng))}
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content), "utf-8")
    return kind
