"""Save a text embedding checkpoint, including the files of sentence-transformers.

Source: the module formats that sentence-transformers 2 to 6 read.
"""

import json
from pathlib import Path
from typing import Any

from torch import nn

from nomicbert.loading.json_settings import optional
from nomicbert.loading.tensor_files import write
from nomicbert.text.prompts import CARDS_PROMPTS, Prompts
from nomicbert.text.tokenizer import Tokenizer
from nomicbert.vectors.embedding_model import EmbeddingModel
from nomicbert.vectors.modules import FLAGS

ACTIVATION_HOMES = {"Identity": "torch.nn.modules.linear"}
OTHER_ACTIVATIONS = "torch.nn.modules.activation"


def save_modules(
    folder: Path,
    model: EmbeddingModel,
    tokenizer: Tokenizer,
    prompts: Prompts,
    max_seq_length: int,
    similarity: str,
    truncate_dim: int | None,
) -> None:
    """Write encoder, tokenizer, pooling and settings of an `Embedder`.

    Args:
        folder: created if it does not exist.
        model: encoder and pooling.
        tokenizer: of the encoder.
        prompts: not written if they are the card's defaults.
        max_seq_length: maximum tokens per text.
        similarity: name of the similarity function for the vectors.
        truncate_dim: columns that `encode` keeps by default, or None.

    Raises: ValueError, TypeError: invalid prompts, before anything is written.
    """
    prompts.check()
    encoder, pooling = model.encoder, model.pooling
    encoder.save_pretrained(folder)
    tokenizer.save(folder)
    width = encoder.config.hidden_size
    places = [("Transformer", ""), ("Pooling", "1_Pooling")]
    places += [("Dense", f"{i}_Dense") for i in range(2, 2 + len(pooling.dense))]
    if pooling.normalize:
        places.append(("Normalize", f"{len(places)}_Normalize"))
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(places)
    ]
    modes = {flag: mode == pooling.mode for flag, mode in FLAGS.items()}
    cards = prompts.cards and prompts.by_name == CARDS_PROMPTS and prompts.default is None
    _write(folder / "modules.json", modules)
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
    (folder / "1_Pooling").mkdir(exist_ok=True)
    _write(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": width, **modes})
    for i, (layer, activation) in enumerate(
        zip(pooling.dense, pooling.activations, strict=True), start=2
    ):
        assert isinstance(layer, nn.Linear)  # Pooling accepts nothing else
        settings = {
            "in_features": layer.in_features,
            "out_features": layer.out_features,
            "bias": layer.bias is not None,
            "activation_function": activation_path(activation),
        }
        tensors = {f"linear.{name}": p.detach().cpu() for name, p in layer.named_parameters()}
        write(folder / f"{i}_Dense", tensors, settings)


def save_reranker_settings(
    folder: Path,
    tokenizer: Tokenizer,
    prompts: Prompts,
    max_seq_length: int,
    activation: str | None,
) -> None:
    """Write a reranker's tokenizer and settings; the limit in each file where a loader looks.

    Args:
        folder: holds encoder and head.
        tokenizer: of the encoder.
        prompts: have been checked.
        max_seq_length: maximum tokens per pair.
        activation: path of the output activation, or None.
    """
    tokenizer.save(folder)
    module = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}
    _write(folder / "modules.json", [module])
    _write(
        folder / "sentence_bert_config.json",
        {
            "max_seq_length": max_seq_length,
            "do_lower_case": tokenizer.lower_case,
            "transformer_task": "sequence-classification",
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


def activation_path(name: str) -> str:
    """The path of a torch.nn class as sentence-transformers writes it."""
    return f"{ACTIVATION_HOMES.get(name, OTHER_ACTIVATIONS)}.{name}"


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
