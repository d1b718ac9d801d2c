"""An Embedder as mteb, the Massive Text Embedding Benchmark, wants its encoders.

Where in the flow: beside the embedder, whose vectors it hands to mteb's tasks. mteb is imported
when it asks for the metadata, not before.

For nomic checkpoints that know the prompt "search_query: ", prompts and vectors are made as
nomic-ai made the figures of nomic-embed-text-v1.5's card:

- "classification: " in classification, pair classification, reranking, STS and summarization,
  "clustering: " in clustering, else "search_query: " or "search_document: "; QuoraRetrieval's
  documents are questions and take the former.
- layer_norm over the full width where the checkpoint's recipe has it (v1.5), slice, L2; in
  classification no L2, which the strength of the classifier's penalty depends on.

Every other checkpoint has its own prompts (Conan has none) and what its modules say.

Source: nomic-ai's contrastors, src/contrastors/eval/encoder.py and mteb_eval/eval_mteb.py. mteb's
own nomic_models.py has these prompts but for QuoraRetrieval; in mteb 2.26 it gives L2 to all
tasks, because it looks for the task's metadata where it means the task's type.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nomicbert.embedder import Embedder

# Keys as mteb has them: task and side, task, type of task and side, type of task, side.
NOMIC_PROMPTS = {
    "QuoraRetrieval-document": "search_query: ",
    "Classification": "classification: ",
    "MultilabelClassification": "classification: ",
    "PairClassification": "classification: ",
    "Reranking": "classification: ",
    "STS": "classification: ",
    "Summarization": "classification: ",
    "Clustering": "clustering: ",
    "query": "search_query: ",
    "document": "search_document: ",
}
WITHOUT_L2 = ("Classification", "MultilabelClassification")

PAIRWISE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cosine": lambda a, b: (F.normalize(a) * F.normalize(b)).sum(1),
    "dot": lambda a, b: (a * b).sum(1),
    "euclidean": lambda a, b: -(a - b).norm(dim=1),
    "manhattan": lambda a, b: -(a - b).abs().sum(1),
}


class MTEBEncoder:
    """What `mteb.evaluate` takes as a model; it meets mteb's EncoderProtocol.

    Attributes:
        embedder: what embeds.
        matryoshka_dim: width of the vectors, or None for the checkpoint's own.
        max_length: tokens of a text at most, or None for the embedder's own limit.
        prompts: what is put before a text, under mteb's keys.
    """

    def __init__(
        self,
        embedder: Embedder,
        *,
        name: str | None = None,
        revision: str | None = None,
        matryoshka_dim: int | None = None,
        max_length: int | None = None,
        prompts: Mapping[str, str] | None = None,
    ) -> None:
        """Make an embedder ready for mteb.

        Args:
            embedder: of any checkpoint.
            name: of the model in mteb's results, such as "nomic-ai/nomic-embed-text-v1.5".
            revision: of the checkpoint, for the results too.
            matryoshka_dim: the checkpoint's recipe for short vectors, as in `Embedder.encode`.
            max_length: tokens of a text at most.
            prompts: in place of those described above. A key is the name of a task or its type,
                with "-query" or "-document" behind it or not, or "query" or "document" alone; the
                first of these that is there counts.

        Raises: ValueError, TypeError: a width or a length that cannot be.
        """
        # without texts it looks at the keywords alone
        embedder.encode([], matryoshka_dim=matryoshka_dim, max_length=max_length)
        nomic = NOMIC_PROMPTS["query"] in embedder.prompts.values()
        self.embedder = embedder
        self.matryoshka_dim = matryoshka_dim
        self.max_length = max_length
        self.prompts = dict(
            (NOMIC_PROMPTS if nomic else embedder.prompts) if prompts is None else prompts
        )
        # for tasks that know neither queries nor documents, as in mteb's nomic_models.py
        self._otherwise = NOMIC_PROMPTS["document"] if nomic else None
        if prompts is not None:
            self._otherwise = ""  # not the checkpoint's own
        self._layer_norm = embedder.pooling.matryoshka_layer_norm
        self._name, self._revision = name, revision

    @property
    def mteb_model_meta(self) -> Any:
        """A ModelMeta of mteb: what is known of the model without a look at the hub."""
        from mteb.models import ModelMeta
        from mteb.models.model_meta import ScoringFunction

        embedder = self.embedder
        options = {"matryoshka_dim": self.matryoshka_dim, "max_length": self.max_length}
        known = {
            "name": self._name,
            "revision": self._revision,
            "n_parameters": sum(p.numel() for p in embedder.model.parameters()),
            "max_tokens": self.max_length or embedder.max_seq_length,
            "embed_dim": self.matryoshka_dim or embedder.get_sentence_embedding_dimension(),
            "similarity_fn_name": ScoringFunction.from_str(embedder.similarity_fn_name),
            "framework": ["PyTorch", "safetensors"],
            "use_instructions": any(self.prompts.values()),
            # results of other options go to another place in mteb's cache
            "experiment_kwargs": {k: v for k, v in options.items() if v is not None} or None,
        }
        return ModelMeta.create_empty(known)

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        **keywords: Any,
    ) -> np.ndarray:
        """Embed the texts of a task.

        Args:
            inputs: mteb's DataLoader: batches with a list of n texts in all under "text".
            task_metadata: mteb's TaskMetadata; its name and type choose the prompt.
            hf_split: makes no difference here, nor does `hf_subset`.
            hf_subset: see `hf_split`.
            prompt_type: mteb's PromptType, or None where a task knows no sides.
            **keywords: those of `Embedder.encode`; mteb gives batch_size and show_progress_bar.

        Returns: (n, dim) float32 in the order of the texts; dtype as `precision` says.
        """
        texts = [text for batch in inputs for text in batch["text"]]
        side = None if prompt_type is None else str(prompt_type.value)
        embedder = self.embedder
        keywords["max_length"] = self.max_length
        encode = embedder.encode
        prompt = self.prompt_of(task_metadata.name, task_metadata.type, side)
        if prompt is not None:
            keywords["prompt"] = prompt
        elif side is not None:
            encode = embedder.encode_query if side == "query" else embedder.encode_document
        width = self.matryoshka_dim
        if not self._layer_norm:
            vectors: np.ndarray = encode(texts, matryoshka_dim=width, **keywords)
            return vectors
        # steps of a column's range, and signs, are the same with L2
        full = keywords.get("precision", "float32") == "float32"
        if full and task_metadata.type in WITHOUT_L2:
            pooled = torch.from_numpy(encode(texts, **keywords))
            return F.layer_norm(pooled, pooled.shape[1:])[:, :width].numpy()
        width = width or embedder.get_sentence_embedding_dimension()
        vectors = encode(texts, matryoshka_dim=width, **keywords)
        return vectors

    def prompt_of(self, task: str, kind: str, side: str | None) -> str | None:
        """The prompt for a task's texts; None leaves it to the checkpoint, where none were given.

        Args:
            task: such as "STS12".
            kind: type of the task, such as "STS".
            side: "query", "document" or None.

        Source: the order of mteb.models.abs_encoder.get_prompt_name.
        """
        keys = (
            [task, kind] if side is None else [f"{task}-{side}", task, f"{kind}-{side}", kind, side]
        )
        found = [self.prompts[key] for key in keys if key in self.prompts]
        return found[0] if found else self._otherwise

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Similarity of each row of one to each row of the other, (n, m) fp32; see `Embedder`."""
        return self.embedder.similarity(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Similarity of each row to the row beside it: two of (n, dim) -> (n,) fp32."""
        a, b = (torch.as_tensor(x).float() for x in (embeddings1, embeddings2))
        return PAIRWISE[self.embedder.similarity_fn_name](a, b)
