"""An Embedder with the encoder interface of mteb, the Massive Text Embedding Benchmark.

Where in the flow: a wrapper around the embedder that passes its vectors to mteb's tasks. mteb is
imported only when it asks for the metadata.

For nomic checkpoints with the prompt "search_query: ", prompts and vectors follow the setup behind
the figures in nomic-embed-text-v1.5's card:

- "classification: " in classification, pair classification, reranking, STS and summarization,
  "clustering: " in clustering, else "search_query: " or "search_document: "; QuoraRetrieval's
  documents are questions and get "search_query: ".
- layer_norm over the full width if the checkpoint's recipe has it (v1.5), slice, L2; no L2 in
  classification, because the scale of the vectors changes the effect of the classifier's penalty.

Every other checkpoint uses its own prompts (Conan has none) and its own modules.

Source: nomic-ai's contrastors, src/contrastors/eval/encoder.py and mteb_eval/eval_mteb.py. mteb's
own nomic_models.py has these prompts except for QuoraRetrieval; in mteb 2.26 it applies L2 in all
tasks, because it reads the task's metadata where the task's type is meant.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nomicbert.embedder import Embedder

# Keys in mteb's form: task and side, task, type of task and side, type of task, side.
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


class MTEBEncoder:
    """A model for `mteb.evaluate`; implements mteb's EncoderProtocol.

    Attributes:
        embedder: the wrapped Embedder.
        matryoshka_dim: width of the vectors, or None for the checkpoint's own.
        max_length: limit of tokens per text, or None for the embedder's own limit.
        prompts: prefixes of texts, under mteb's keys.
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
        """Wrap an embedder for mteb.

        Args:
            embedder: of any checkpoint.
            name: of the model in mteb's results, such as "nomic-ai/nomic-embed-text-v1.5".
            revision: of the checkpoint, for the results too.
            matryoshka_dim: the checkpoint's recipe for short vectors, as in `Embedder.encode`.
            max_length: limit of tokens per text.
            prompts: replace the default prompts described above. A key is the name of a task or its
                type, each optionally followed by "-query" or "-document", or "query" or "document"
                alone. The order of precedence is that of `prompt_of`.

        Raises: ValueError, TypeError: an invalid width or length.
        """
        # a call without texts only checks the keywords
        embedder.encode([], matryoshka_dim=matryoshka_dim, max_length=max_length)
        nomic = NOMIC_PROMPTS["query"] in embedder.prompts.values()
        self.embedder = embedder
        self.matryoshka_dim = matryoshka_dim
        self.max_length = max_length
        self.prompts = dict(
            (NOMIC_PROMPTS if nomic else embedder.prompts) if prompts is None else prompts
        )
        # for tasks without queries and documents, as in mteb's nomic_models.py
        self._otherwise = NOMIC_PROMPTS["document"] if nomic else None
        if prompts is not None:
            self._otherwise = ""  # never fall back to the checkpoint's own prompts
        self._layer_norm = embedder.pooling.matryoshka_layer_norm
        self._name, self._revision = name, revision

    @property
    def mteb_model_meta(self) -> Any:
        """The ModelMeta of mteb, with the fields that are known without access to the hub."""
        from mteb.models import ModelMeta
        from mteb.models.model_meta import ScoringFunction

        embedder = self.embedder
        options = {
            "matryoshka_dim": self.matryoshka_dim,
            "truncate_dim": None if self.matryoshka_dim else embedder.truncate_dim,
            "max_length": self.max_length,
        }
        known = {
            "name": self._name,
            "revision": self._revision,
            "n_parameters": sum(p.numel() for p in embedder.model.parameters()),
            "max_tokens": self.max_length or embedder.max_seq_length,
            "embed_dim": self.matryoshka_dim or embedder.get_embedding_dimension(),
            "similarity_fn_name": ScoringFunction.from_str(embedder.similarity_fn_name),
            "framework": ["PyTorch", "safetensors"],
            "use_instructions": any(self.prompts.values()),
            # part of the key of mteb's result cache
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
            inputs: mteb's DataLoader: batches with a list of texts under "text", n texts in all.
            task_metadata: mteb's TaskMetadata; its name and type choose the prompt.
            hf_split: unused.
            hf_subset: unused.
            prompt_type: mteb's PromptType, or None for tasks without queries and documents.
            **keywords: those of `Embedder.encode`; mteb passes batch_size and show_progress_bar.

        Returns: (n, dim) in the order of the texts; float32, or the dtype of `precision`.
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
        # other precisions keep L2: signs, and the steps of a column's range, hardly depend on it
        full = keywords.get("precision", "float32") == "float32"
        width = width or embedder.get_embedding_dimension()
        if full and task_metadata.type in WITHOUT_L2:
            keywords["truncate_dim"] = embedder.pooling.embedding_dimension
            pooled = torch.from_numpy(encode(texts, **keywords))
            return F.layer_norm(pooled, pooled.shape[1:])[:, :width].numpy()
        vectors = encode(texts, matryoshka_dim=width, **keywords)
        return vectors

    def prompt_of(self, task: str, kind: str, side: str | None) -> str | None:
        """The prompt for a task's texts; None if the checkpoint's default applies.

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
        """Similarity matrix (n, m) fp32 of the rows of two matrices; see `Embedder.similarity`."""
        return self.embedder.similarity(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Similarity of rows with the same index: two matrices (n, dim) -> (n,) fp32."""
        return self.embedder.similarity_pairwise(embeddings1, embeddings2)
