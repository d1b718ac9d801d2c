"""What is exported: a loaded checkpoint, the outputs of its graph, and the same from the model.

Where in the flow: `run` loads one, `encoder` writes its hidden states, this module what follows;
`check` compares the graph with `truth`.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from nomicbert.cross_encoder import CrossEncoder
from nomicbert.embedder import Embedder
from nomicbert.export.graph import Graph
from nomicbert.export.heads import Outputs, logits
from nomicbert.export.vectors import check_pooling, text_vectors
from nomicbert.loading.folder import CheckpointFolder, read_folder
from nomicbert.loading.json_settings import optional
from nomicbert.loading.purpose import is_embedder
from nomicbert.loading.saved_config import saved_config
from nomicbert.modeling.heads import (
    NomicBertForMaskedLM,
    NomicBertForQuestionAnswering,
    NomicBertForTokenClassification,
)
from nomicbert.modeling.heads.head import Head
from nomicbert.modeling.model import NomicBert
from nomicbert.modeling.packing import PackedBatch
from nomicbert.text.max_length import stated_limit
from nomicbert.text.tokenizer import Tokenizer
from nomicbert.vectors.fingerprint import Fingerprint
from nomicbert.vectors.pooling import Finish
from nomicbert_kernels import PoolMode

# The names that pipelines of transformers and Transformers.js have; "auto" takes what `Embedder`
# or `CrossEncoder` would load.
Task: TypeAlias = Literal[
    "auto",
    "feature-extraction",
    "text-classification",
    "token-classification",
    "question-answering",
    "fill-mask",
]
TASKS: tuple[Task, ...] = get_args(Task)
# Suffix of an architecture in config.json -> its task. A masked LM is exported as an encoder.
BY_ARCHITECTURE: dict[str, Task] = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
}
HEADS: dict[Task, type[Head]] = {
    "token-classification": NomicBertForTokenClassification,
    "question-answering": NomicBertForQuestionAnswering,
    "fill-mask": NomicBertForMaskedLM,
}
HIDDEN, VECTOR = "last_hidden_state", "sentence_embedding"


@dataclass(frozen=True)
class Source:
    """A loaded checkpoint.

    Attributes:
        task: never "auto".
        encoder: of the model, in float32 on the CPU.
        tokenizer: of the encoder.
        max_length: maximum tokens per text.
        embedder: if the outputs are hidden states and vectors, else None.
        head: if they are its logits, else None.
        reranker: that the head is of, or None.
        fingerprint: of the embedder's vectors without a prompt; "" of a head.
    """

    task: Task
    encoder: NomicBert
    tokenizer: Tokenizer
    max_length: int
    embedder: Embedder | None = None
    head: Head | None = None
    reranker: CrossEncoder | None = None
    fingerprint: str = ""

    def outputs(self, graph: Graph, hidden: str, mask: str) -> Outputs:
        """Add the nodes after the encoder; `hidden` and `mask` are those of `text_vectors`."""
        if self.head is not None:
            return logits(graph, self.head, hidden, mask)
        assert self.embedder is not None
        pooling, width = self.embedder.pooling, self.encoder.config.hidden_size
        return {
            HIDDEN: (graph.widen(hidden), ("batch", "sequence", width)),
            VECTOR: (
                text_vectors(graph, pooling, hidden, mask),
                ("batch", pooling.embedding_dimension),
            ),
        }

    @torch.inference_mode()
    def truth(self, batch: PackedBatch) -> dict[str, Tensor]:
        """The model's own outputs: one row per text or per packed token, by name of the output."""
        if self.head is not None:
            found = self.head.packed_logits(batch).float()
            if isinstance(self.head, NomicBertForQuestionAnswering):
                return {"start_logits": found[:, :1], "end_logits": found[:, 1:]}
            return {"logits": found}
        assert self.embedder is not None
        return {
            HIDDEN: self.encoder.encode_packed(batch),
            VECTOR: self.embedder.embedding_model(batch),
        }

    def save_settings(self, folder: Path) -> None:
        """Write config.json, the tokenizer, and the files of sentence-transformers."""
        facade = self.embedder or self.reranker
        if facade is None:
            self.tokenizer.save(folder)
        else:
            facade.save_settings(folder)
        more = {} if self.head is None else self.head.settings()
        config = saved_config(self.encoder.config, torch.float32)
        _write(folder / "config.json", {**config, **more})
        path = folder / "tokenizer_config.json"
        # Transformers.js knows no other limit
        _write(path, {**optional(path).raw, "model_max_length": self.max_length})
        path = folder / "tokenizer.json"
        stored = json.loads(path.read_text("utf-8"))
        if _add_older_keys(stored):
            _write(path, stored)


def _add_older_keys(stored: dict[str, Any]) -> bool:
    """Add to a tokenizer.json what version 2 of Transformers.js needs; whether it needs any.

    It reads Metaspace's older key only, and without it no word begins with a space.
    """
    splits = stored["pre_tokenizer"] or {}
    found = [
        part
        for part in (splits, *splits.get("pretokenizers", ()))
        if part.get("type") == "Metaspace"
    ]
    for part in found:
        part["add_prefix_space"] = part["prepend_scheme"] != "never"
    return bool(found)


def load(
    model: Path,
    task: Task,
    rotary_scaling_factor: float | None = None,
    pooling: PoolMode | None = None,
) -> Source:
    """Load a checkpoint for export, in float32 on the CPU.

    Args:
        model: its folder.
        task: what to export; "auto" decides by the checkpoint's settings.
        rotary_scaling_factor: as for `NomicBert.from_pretrained`.
        pooling: as for `Embedder`.

    Raises: ExportError: a pooling that cannot be exported. ConfigError, CheckpointError: no such
        head, or a checkpoint that cannot be loaded.
    """
    checkpoint = read_folder(model, rotary_scaling_factor)
    task = _task_of(checkpoint) if task == "auto" else task
    if task == "feature-extraction":
        embedder = Embedder(model, pooling=pooling, rotary_scaling_factor=rotary_scaling_factor)
        check_pooling(embedder.pooling)
        named = Fingerprint.of(embedder.embedding_model, embedder.tokenizer).of_call(Finish(), "")
        parts = (embedder.model, embedder.tokenizer, embedder.max_seq_length)
        return Source(task, *parts, embedder=embedder, fingerprint=named)
    if pooling is not None:
        raise ValueError(f"pooling is for vectors, and the task is {task}")
    if task == "text-classification":
        reranker = CrossEncoder(model, rotary_scaling_factor=rotary_scaling_factor)
        head: Head = reranker.model
        parts = (head.encoder, reranker.tokenizer, reranker.max_seq_length)
        return Source(task, *parts, head=head, reranker=reranker)
    head = HEADS[task].from_pretrained(checkpoint)
    tokenizer = Tokenizer.from_settings(checkpoint.tokenizer, head.config.vocab_size)
    limit = stated_limit(checkpoint, tokenizer.shortest)
    return Source(task, head.encoder, tokenizer, limit, head=head)


def _task_of(checkpoint: CheckpointFolder) -> Task:
    if checkpoint.model_type == "CrossEncoder" or checkpoint.task == "sequence-classification":
        return "text-classification"
    if not is_embedder(checkpoint) and checkpoint.modules is None:
        for name in checkpoint.architectures:
            for suffix, task in BY_ARCHITECTURE.items():
                if name.endswith(suffix):
                    return task
    return "feature-extraction"


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
