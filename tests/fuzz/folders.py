"""The sound checkpoints that are damaged: one of each layout, tokenizer and weight format."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from nomicbert import CrossEncoder, Embedder, NomicBertForMaskedLM, NomicBertForTokenClassification
from tests.support.checkpoints import build_checkpoint, edit_config, read_tensors
from tests.support.rerankers import build_reranker
from tests.support.vocabularies import wordpiece


@dataclass(frozen=True)
class Sound:
    """A sound checkpoint.

    Attributes:
        build: writes it into an empty folder.
        loads: the class that loads it.
        alike: whether transformers and sentence-transformers compute the same from its files.
        keywords: of the call that loads it.
    """

    build: Callable[[Path], object]
    loads: type = Embedder
    alike: bool = True
    keywords: Mapping[str, Any] = field(default_factory=dict)


# One layer is enough, and quick; of two, "bge" and "shards" have names that count them, and every
# second one of nomic-moe has experts.
ONE = {"num_hidden_layers": 1}
TWO = {"num_hidden_layers": 2}


def _variant(name: str, **settings: object) -> Callable[[Path], object]:
    return lambda folder: build_checkpoint(folder, name, **{**ONE, **settings})


def _old_bin(folder: Path) -> None:
    """torch.save's format before 1.6: pickles one after the other, without a zip file around."""
    build_checkpoint(folder, "bge-en", **ONE)
    tensors = read_tensors(folder)
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)


def _sharded_bin(folder: Path) -> None:
    build_checkpoint(folder, "e5", weights="sharded", **TWO)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    for shard in sorted(set(index["weight_map"].values())):
        old = shard.replace("model", "pytorch_model", 1).replace(".safetensors", ".bin")
        torch.save(load_file(folder / shard), folder / old)
        (folder / shard).unlink()
        index["weight_map"] = {k: old if v == shard else v for k, v in index["weight_map"].items()}
    (folder / "model.safetensors.index.json").unlink()
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def _only_vocabulary(folder: Path) -> None:
    build_checkpoint(folder, "bge-en", vocab_size=400, **ONE)
    (folder / "tokenizer.json").unlink()
    (folder / "added_tokens.json").write_text(json.dumps({"[Q]": 3, "<doc>": 4}))


def _dense_bin(folder: Path) -> None:
    build_checkpoint(folder, "conan-v1", **ONE)
    dense = folder / "2_Dense" / "model.safetensors"
    torch.save(load_file(dense), dense.with_name("pytorch_model.bin"))
    dense.unlink()


def _nested(folder: Path) -> None:
    """The layout of the first releases: the encoder in a folder of its own."""
    build_checkpoint(folder, "minilm", hidden_size=64, intermediate_size=96, num_hidden_layers=2)
    home = folder / "0_Transformer"
    home.mkdir()
    for file in folder.iterdir():
        if file.is_file() and file.name not in ("modules.json", "README.md"):
            shutil.move(file, home / file.name)
    shutil.move(home / "config_sentence_transformers.json", folder)
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (folder / "modules.json").write_text(json.dumps(modules))


def _other_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    build_checkpoint(folder, "bge-en", **ONE)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "vocab.txt").unlink()
    (folder / "special_tokens_map.json").unlink()
    stated = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(stated))


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))


def _modules(folder: Path) -> None:
    """Every kind of module after pooling, in the form that sentence-transformers 6 writes."""
    build_checkpoint(folder, "bge-en", num_hidden_layers=1, hidden_act="relu")
    _listed(folder, "Pooling", "LayerNorm", "Dense", "Dropout", "Dense", "Normalize")
    draw = torch.Generator().manual_seed(3)
    modes = {"pooling_mode": ["cls", "mean"], "include_prompt": False, "embedding_dimension": 64}
    _write(folder / "1_Pooling" / "config.json", modes)
    _write(folder / "2_LayerNorm" / "config.json", {"dimension": 128})
    norm = {f"norm.{name}": torch.rand(128, generator=draw) for name in ("weight", "bias")}
    save_file(norm, folder / "2_LayerNorm" / "model.safetensors")
    _dense(folder / "3_Dense", 128, 32, draw, use_residual=True)
    _write(folder / "4_Dropout" / "config.json", {"dropout": 0.3})
    _dense(folder / "5_Dense", 32, 48, draw, activation_function="torch.nn.modules.linear.Identity")
    _write(folder / "6_Normalize" / "config.json", {"module_input_name": "sentence_embedding"})


def _modular_reranker(folder: Path) -> None:
    build_checkpoint(folder, "bge-en", num_hidden_layers=1)
    _listed(folder, "Pooling", "Dense", "Dense")
    draw = torch.Generator().manual_seed(4)
    _dense(folder / "2_Dense", 64, 16, draw)
    _dense(folder / "3_Dense", 16, 1, draw, module_output_name="scores")
    settings = {"model_type": "CrossEncoder", "prompts": {"find": "find: "}}
    _write(folder / "config_sentence_transformers.json", settings)


def _listed(folder: Path, *kinds: str) -> None:
    """List modules after the encoder in modules.json."""
    shutil.rmtree(folder / "2_Normalize", ignore_errors=True)
    modules = json.loads((folder / "modules.json").read_text())[:1]
    for place, kind in enumerate(kinds, start=1):
        name = f"sentence_transformers.models.{kind}"
        modules.append({"idx": place, "name": str(place), "path": f"{place}_{kind}", "type": name})
    _write(folder / "modules.json", modules)


def _dense(folder: Path, inputs: int, outputs: int, draw: torch.Generator, **settings: Any) -> None:
    stated = {"in_features": inputs, "out_features": outputs, "bias": True}
    stated |= {"activation_function": "torch.nn.modules.activation.Tanh"} | settings
    _write(folder / "config.json", stated)
    tensors = {
        "linear.weight": torch.randn(outputs, inputs, generator=draw) / inputs**0.5,
        "linear.bias": torch.randn(outputs, generator=draw) / 10,
    }
    if settings.get("use_residual"):
        tensors["residual.weight"] = torch.randn(outputs, inputs, generator=draw) / inputs**0.5
    save_file(tensors, folder / "model.safetensors")


def _bpe(folder: Path) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = ["[PAD]", "[CLS]", "[SEP]", *alphabet, "th", "the", "Ġt", "in", "ing"]
    merges = [("t", "h"), ("th", "e"), ("Ġ", "t"), ("i", "n"), ("in", "g")]
    tokenizer = Tokenizer(models.BPE(vocab={p: i for i, p in enumerate(pieces)}, merges=merges))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Strip()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    frame = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )  # fmt: skip
    tokenizer.post_processor = frame
    tokenizer.add_special_tokens(["[PAD]", "[CLS]", "[SEP]"])
    _other_tokenizer(folder, tokenizer)


def _words(folder: Path) -> None:
    """A WordLevel model: words of the English vocabulary."""
    base = wordpiece()
    vocabulary = {word: i for word, i in base.get_vocab().items() if not word.startswith("##")}
    vocabulary = {word: i for i, word in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Digits(individual_digits=True)]
    )
    ids = [(mark, vocabulary[mark]) for mark in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.BertProcessing(ids[1], ids[0])
    _other_tokenizer(folder, tokenizer)


def _entities(folder: Path) -> None:
    """A head that labels tokens."""
    build_reranker(folder, labels=3)
    edit_config(folder, architectures=["BertForTokenClassification"], num_labels=3)


SOUND: dict[str, Sound] = {
    "nomic-v1.5": Sound(_variant("nomic-v1.5")),
    "nomic-native": Sound(_variant("nomic-v1.5", dialect="native"), keywords={"dtype": "auto"}),
    "nomic-moe": Sound(_variant("nomic-v2-moe", **TWO), alike=False),
    "nomic-bin": Sound(_variant("nomic-v1-unsupervised"), alike=False),
    "bge": Sound(_variant("bge-en", **TWO)),
    "gte-half": Sound(_variant("gte"), keywords={"dtype": "auto"}),
    "conan": Sound(_variant("conan-v1")),
    "conan-bin": Sound(_dense_bin),
    "shards": Sound(_variant("e5", weights="sharded", **TWO)),
    "shards-bin": Sound(_sharded_bin),
    "old-bin": Sound(_old_bin),
    "nested": Sound(_nested),
    "vocabulary": Sound(_only_vocabulary),
    "bpe": Sound(_bpe),
    "words": Sound(_words),
    "modules": Sound(_modules),
    "modular": Sound(_modular_reranker, CrossEncoder),
    "reranker": Sound(lambda folder: build_reranker(folder, labels=1), CrossEncoder),
    "masked-lm": Sound(_variant("bert-base-uncased"), NomicBertForMaskedLM),
    "entities": Sound(_entities, NomicBertForTokenClassification),
}
