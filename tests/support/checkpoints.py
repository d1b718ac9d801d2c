"""Checkpoint folders in the hub's exact layout, with weights that expose faults.

`build_checkpoint` writes one row of `tests/support/variants.py`, tiny or in full: config, weights,
tokenizer and the sentence-transformers files. The weights come from `tests/support/redraw.py`, so
every tensor affects the output.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.support import vocabularies as vocab
from tests.support.layouts import Shapes, bert_layout, nomic_layout
from tests.support.redraw import Tensors, redraw
from tests.support.variants import (
    ALIASES,
    REMOTE_CODE,
    TINY,
    VARIANT_TABLE,
    VARIANTS,
    Config,
    Variant,
)

__all__ = [
    "VARIANTS",
    "build_checkpoint",
    "edit_config",
    "read_config",
    "read_tensors",
    "redraw",
    "tensor_shapes",
]

DENSE_OUT = {"tiny": 112, "full": 1792}
_TINY_VOCAB = {
    "english": vocab.ENGLISH_SIZE,
    "chinese": vocab.CHINESE_SIZE,
    "unigram": vocab.UNIGRAM_SIZE,
}
_BERT_MARKS = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}
_XLMR_MARKS = {
    "bos": "<s>",
    "eos": "</s>",
    "unk": "<unk>",
    "sep": "</s>",
    "pad": "<pad>",
    "cls": "<s>",
    "mask": "<mask>",
}


def build_checkpoint(
    folder: str | Path,
    variant: str,
    *,
    size: str = "tiny",
    seed: int = 0,
    on_disk_dtype: torch.dtype | None = None,
    dialect: str | None = None,
    weights: str | None = None,
    **config_overrides: Any,
) -> Path:
    """Write a checkpoint folder.

    Args:
        folder: created if missing; files of the same names are overwritten, others kept.
        variant: one of VARIANTS.
        size: "tiny", or "full" for the real shape.
        seed: of the weights. The same seed and shape give the same values for any prefix.
        on_disk_dtype: of every float tensor; default as on the hub.
        dialect: "legacy", "native" or "both" key families (NomicBERT); default as on the hub.
        weights: "safetensors", "bin" or "sharded"; default as on the hub.
        config_overrides: config keys in either family's name. They change the shapes too, under
            all their names; an unknown key is written unchanged.
    Returns: the folder.
    """
    row, where = VARIANT_TABLE[variant], Path(folder)
    where.mkdir(parents=True, exist_ok=True)
    settings = _settings(row, size, config_overrides)
    config = _config(row, settings, dialect or row.dialect, config_overrides)
    _write_json(where / "config.json", config)
    empty = {
        name: torch.empty(shape, dtype=_stored_dtype(name, on_disk_dtype or row.dtype))
        for name, shape in _layout(row, settings).items()
    }
    _write_weights(where, redraw(empty, settings, seed), weights or row.weights)
    _write_tokenizer(where, row, size)
    if row.pooling is not None:
        _write_modules(where, row, settings, size, seed)
    return where


def tensor_shapes(variant: str, size: str = "tiny", **config_overrides: Any) -> Shapes:
    """Names and shapes of a checkpoint's tensors, without making any."""
    row = VARIANT_TABLE[variant]
    return _layout(row, _settings(row, size, config_overrides))


def read_config(folder: str | Path) -> Config:
    """The folder's config.json."""
    return json.loads((Path(folder) / "config.json").read_text("utf-8"))


def edit_config(folder: str | Path, **changes: Any) -> Config:
    """Change config.json in place; a value of ... removes the key."""
    config = read_config(folder) | changes
    config = {key: value for key, value in config.items() if value is not ...}
    _write_json(Path(folder) / "config.json", config)
    return config


def read_tensors(folder: str | Path) -> Tensors:
    """The folder's weights under their names on disk: safetensors, shards or .bin."""
    shards = sorted(Path(folder).glob("model*.safetensors"))
    if not shards:
        return torch.load(Path(folder) / "pytorch_model.bin", weights_only=True)
    return {name: tensor for shard in shards for name, tensor in load_file(shard).items()}


def _settings(row: Variant, size: str, overrides: Config) -> Config:
    renamed = {ALIASES.get(key, key): value for key, value in overrides.items()}
    rows = row.real_vocab if size == "full" else _TINY_VOCAB[row.tokenizer]
    multiple = row.base.get("pad_vocab_size_multiple", 1)
    shape = {"vocab_size": -(-rows // multiple) * multiple} | (TINY if size == "tiny" else {})
    return row.base | row.settings | shape | renamed


def _layout(row: Variant, settings: Config) -> Shapes:
    layout = bert_layout if settings["model_type"] == "bert" else nomic_layout
    return layout(settings, row.extras, row.prefix)


def _config(row: Variant, settings: Config, dialect: str, overrides: Config) -> Config:
    config = {"architectures": [row.architecture]} | settings
    if settings["model_type"] == "nomic_bert":
        config = {"legacy": _legacy, "native": _native, "both": _both}[dialect](config)
    config |= {key: value for key, value in row.quirks.items() if key in config}
    absent = set(row.absent) - set(overrides)
    config = {key: value for key, value in config.items() if key not in absent}
    aliased = {*ALIASES, *ALIASES.values()}
    return config | {k: v for k, v in overrides.items() if k in config or k not in aliased}


def _legacy(s: Config) -> Config:
    old = {name: alias for alias, name in ALIASES.items()}
    return {"auto_map": REMOTE_CODE} | {old.get(key, key): value for key, value in s.items()}


def _native(s: Config) -> Config:
    if s["activation_function"] != "swiglu":
        raise ValueError("transformers' own key family knows only the gated layout")
    factor = s["rotary_scaling_factor"]
    rope = {"rope_theta": float(s["rotary_emb_base"]), "rope_type": "default"}
    if factor:
        rope |= {"rope_type": "dynamic", "factor": float(factor)}
    kept = ("architectures", "model_type", "vocab_size", "type_vocab_size", "initializer_range")
    names = (*kept, *ALIASES.values())
    more = {"hidden_act": "silu", "rope_parameters": rope, "pad_token_id": s.get("pad_token_id", 0)}
    return {key: s[key] for key in names} | more | {"dtype": s["torch_dtype"]}


def _both(s: Config) -> Config:
    native = _native(s)
    del native["dtype"]  # the hub's mixed files keep torch_dtype
    return _legacy(s) | native


def _stored_dtype(name: str, dtype: torch.dtype) -> torch.dtype:
    return torch.int64 if name.endswith("position_ids") else dtype


def _write_weights(where: Path, tensors: Tensors, form: str) -> None:
    if form == "safetensors":
        save_file(tensors, where / "model.safetensors", {"format": "pt"})
    elif form == "bin":
        torch.save(tensors, where / "pytorch_model.bin")
    elif form == "sharded":
        names = list(tensors)
        cut = len(names) // 2
        files: dict[str, str] = {}
        for i, part in enumerate((names[:cut], names[cut:]), start=1):
            file = f"model-{i:05d}-of-00002.safetensors"
            save_file({name: tensors[name] for name in part}, where / file, {"format": "pt"})
            files |= dict.fromkeys(part, file)
        total = sum(t.numel() * t.element_size() for t in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": files}
        _write_json(where / "model.safetensors.index.json", index)
    else:
        raise ValueError(f"weights are 'safetensors', 'bin' or 'sharded', not {form!r}")


def _write_tokenizer(where: Path, row: Variant, size: str) -> None:
    rows = row.real_vocab if size == "full" else _TINY_VOCAB[row.tokenizer]
    text = vocab.tokenizer_json(row.tokenizer, rows, *row.baked)
    (where / "tokenizer.json").write_text(text, "utf-8")
    if row.tokenizer == "unigram":
        marks, more = _XLMR_MARKS, {"tokenizer_class": "XLMRobertaTokenizer"}
    else:
        (where / "vocab.txt").write_text(vocab.vocabulary_text(row.tokenizer, rows), "utf-8")
        marks, more = _BERT_MARKS, {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
    special = {f"{name}_token": mark for name, mark in marks.items()}
    _write_json(where / "special_tokens_map.json", special)
    # MiniLM: 512 in tokenizer_config.json, 256 in the sentence-transformers file
    longest = 512 if row.baked[0] else row.max_length
    _write_json(where / "tokenizer_config.json", special | more | {"model_max_length": longest})


def _write_modules(where: Path, row: Variant, settings: Config, size: str, seed: int) -> None:
    width = settings["hidden_size"]
    names = ("Transformer", "Pooling", *row.post)
    paths = ["", *(f"{i}_{name}" for i, name in enumerate(names) if i)]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
        for i, (name, path) in enumerate(zip(names, paths, strict=True))
    ]
    _write_json(where / "modules.json", modules)
    pooling: Config = {"word_embedding_dimension": width, "pooling_mode_cls_token": False}
    pooling |= dict.fromkeys(("pooling_mode_mean_tokens", "pooling_mode_max_tokens"), False)
    pooling["pooling_mode_mean_sqrt_len_tokens"] = False
    pooling[f"pooling_mode_{row.pooling}_token" + "s" * (row.pooling == "mean")] = True
    if row.tokenizer == "unigram":
        pooling["include_prompt"] = True
    _write_json(where / "1_Pooling" / "config.json", pooling)
    limits = {"max_seq_length": row.max_length, "do_lower_case": False}
    _write_json(where / "sentence_bert_config.json", limits)
    versions = {"sentence_transformers": "2.2.2", "transformers": "4.37.2", "pytorch": "2.1.0"}
    top: Config = {"__version__": versions}
    if row.prompts:
        top |= {"prompts": row.prompts, "default_prompt_name": None, "similarity_fn_name": "cosine"}
    _write_json(where / "config_sentence_transformers.json", top)
    if "Dense" in row.post:
        out = DENSE_OUT[size]
        identity = "torch.nn.modules.linear.Identity"
        dense = {"in_features": width, "out_features": out, "bias": True}
        _write_json(where / "2_Dense" / "config.json", dense | {"activation_function": identity})
        generator = torch.Generator().manual_seed(seed + 1)
        linear = {
            "linear.weight": torch.randn(out, width, generator=generator) / math.sqrt(width),
            "linear.bias": torch.rand(out, generator=generator) * 0.1 - 0.05,
        }
        save_file(linear, where / "2_Dense" / "model.safetensors", {"format": "pt"})


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")
