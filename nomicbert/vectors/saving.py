"""Save a text embedding checkpoint, including the files of sentence-transformers.

Source: the module formats that sentence-transformers 2 to 6 read.
"""

import json
from pathlib import Path
from typing import Any

from nomicbert.loading.json_settings import optional
from nomicbert.loading.tensor_files import write
from nomicbert.text.prompts import CARDS_PROMPTS, Prompts
from nomicbert.text.tokenizer import Tokenizer
from nomicbert.vectors.activations import path_of
from nomicbert.vectors.embedding_model import EmbeddingModel
from nomicbert.vectors.modules import FLAGS
from nomicbert.vectors.pooling import Pooling
from nomicbert.vectors.step_files import VECTOR
from nomicbert.vectors.steps import Dense, Dropout, LayerNorm, Step


def save_modules(
    folder: Path,
    model: EmbeddingModel,
    tokenizer: Tokenizer,
    prompts: Prompts,
    max_seq_length: int,
    similarity: str,
    truncate_dim: int | None,
) -> None:
    """Write tokenizer, pooling and settings of an `Embedder`: all but the encoder.

    Args:
        folder: exists.
        model: encoder and pooling.
        tokenizer: of the encoder.
        prompts: have been checked; not written if they are the card's defaults.
        max_seq_length: maximum tokens per text.
        similarity: name of the similarity function for the vectors.
        truncate_dim: columns that `encode` keeps by default, or None.
    """
    tokenizer.save(folder)
    save_pooling(folder, model.pooling, model.encoder.config.hidden_size)
    cards = prompts.cards and prompts.by_name == CARDS_PROMPTS and prompts.default is None
    _write(
        folder / "sentence_bert_config.json",
        {"max_seq_length": max_seq_length, "do_lower_case": tokenizer.lower_case},
    )
    _write(
        folder / "config_sentence_transformers.json",
        {
            "model_type": "SentenceTransformer",
            "prompts": {} if cards else prompts.by_name,
            "default_prompt_name": prompts.default,
            "similarity_fn_name": similarity,
            **({} if truncate_dim is None else {"truncate_dim": truncate_dim}),
        },
    )


def save_pooling(folder: Path, pooling: Pooling, width: int, output: str = VECTOR) -> None:
    """Write modules.json and the modules after the encoder.

    Args:
        folder: holds the encoder.
        pooling: all steps after it.
        width: of the encoder.
        output: sentence-transformers' name of what the last module gives.
    """
    kinds = ["Transformer", "Pooling", *(type(step).__name__ for step in pooling.steps)]
    kinds += ["Normalize"] if pooling.normalize else []
    _write_modules(folder, *kinds)
    flags = {flag: mode in pooling.modes for flag, mode in FLAGS.items()}
    # the old form, which every version reads, has one order and no repetition
    old = tuple(mode for mode in FLAGS.values() if mode in pooling.modes) == pooling.modes
    settings: dict[str, Any] = {"word_embedding_dimension": width, **flags}
    if not old:
        names = [mode + "_tokens" * (mode == "mean_sqrt_len") for mode in pooling.modes]
        settings = {"embedding_dimension": width, "pooling_mode": names}
    if not pooling.include_prompt:
        settings["include_prompt"] = False
    _write_settings(folder / "1_Pooling", settings)
    for place, step in enumerate(pooling.steps, start=2):
        assert isinstance(step, Step)  # Pooling accepts nothing else
        last = place == len(kinds) - 1
        _save_step(folder / f"{place}_{kinds[place]}", step, output if last else VECTOR)


def _save_step(folder: Path, step: Step, output: str) -> None:
    tensors = {name: p.detach().cpu() for name, p in step.named_parameters()}
    if isinstance(step, Dense):
        settings = {
            "in_features": step.linear.in_features,
            "out_features": step.linear.out_features,
            "bias": step.linear.bias is not None,
            "activation_function": path_of(step.activation),
            **({"use_residual": True} if step.use_residual else {}),
            **({} if output == VECTOR else {"module_output_name": output}),
        }
        write(folder, tensors, settings)
    elif isinstance(step, LayerNorm):
        write(folder, tensors, {"dimension": step.norm.normalized_shape[0]})
    elif isinstance(step, Dropout):
        _write_settings(folder, {"dropout": step.p})


def save_reranker_settings(
    folder: Path,
    tokenizer: Tokenizer,
    prompts: Prompts,
    max_seq_length: int,
    activation: str | None,
    modular: bool = False,
) -> None:
    """Write a reranker's tokenizer and settings; the limit in each file where a loader looks.

    Args:
        folder: holds encoder and head; with `modular` also modules.json.
        tokenizer: of the encoder.
        prompts: have been checked.
        max_seq_length: maximum tokens per pair.
        activation: path of the output activation, or None.
        modular: whether modules after the encoder give the scores, and not a classifier in it.
    """
    tokenizer.save(folder)
    if not modular:
        _write_modules(folder, "Transformer")
    _write(
        folder / "sentence_bert_config.json",
        {
            "max_seq_length": max_seq_length,
            "do_lower_case": tokenizer.lower_case,
            "transformer_task": "feature-extraction" if modular else "sequence-classification",
        },
    )
    _write(
        folder / "config_sentence_transformers.json",
        {
            "model_type": "CrossEncoder",
            "prompts": prompts.by_name,
            "default_prompt_name": prompts.default,
            "activation_fn": activation,
        },
    )
    path = folder / "tokenizer_config.json"
    stated = dict(optional(path).raw)
    _write(path, {**stated, "model_max_length": max_seq_length})


def _write_modules(folder: Path, *kinds: str) -> None:
    """Write modules.json for modules of these kinds; the first is the encoder."""
    modules = [
        {
            "idx": i,
            "name": str(i),
            "path": f"{i}_{kind}" if i else "",
            "type": f"sentence_transformers.models.{kind}",
        }
        for i, kind in enumerate(kinds)
    ]
    _write(folder / "modules.json", modules)


def _write_settings(folder: Path, settings: dict[str, Any]) -> None:
    folder.mkdir(exist_ok=True)
    _write(folder / "config.json", settings)


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
