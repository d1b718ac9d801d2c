"""Embedder: text in, vectors out. The facade over tokenizer, packing, encoder and pooling.

Arguments that sentence-transformers has too carry its names and its meaning.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nomicbert.arguments import as_place, refuse_unknown
from nomicbert.loading import hub
from nomicbert.loading.folder import read_folder
from nomicbert.loading.target import check_keywords
from nomicbert.modeling.model import NomicBert
from nomicbert.modeling.packing import PackedBatch, pack
from nomicbert.runtime.batches import as_iterator, as_texts
from nomicbert.runtime.graphs import Graphs
from nomicbert.runtime.request import Devices, OutputValue, Request
from nomicbert.runtime.stream import Stream
from nomicbert.runtime.texts import Texts, Truncate
from nomicbert.runtime.workers import Workers, open_stream
from nomicbert.text.max_length import check_limit
from nomicbert.text.prompts import Prompts, prompted
from nomicbert.text.tokenizer import Tokenizer
from nomicbert.user_warnings import warn_of_cuts
from nomicbert.vectors.embedding_model import EmbeddingModel
from nomicbert.vectors.fp8_check import accept
from nomicbert.vectors.modules import read_pooling
from nomicbert.vectors.pooling import Pooling
from nomicbert.vectors.quantization import Precision
from nomicbert.vectors.saving import save_modules
from nomicbert.vectors.similarity import similarity


class Embedder:
    """Embeds texts with one checkpoint.

    Attributes:
        tokenizer: text -> token ids.
        embedding_model: token ids -> vectors: encoder and pooling.
        prompts: the checkpoint's prompts by name.
        max_seq_length: tokens of a text at most, special ones included; may be set.
        similarity_fn_name: "cosine", "dot", "euclidean" or "manhattan".
        graphs: what has been recorded for small batches on a GPU.
    """

    def __init__(
        self,
        path_or_repo_id: str | os.PathLike[str],
        *,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        **model_keywords: Any,
    ) -> None:
        """Load a checkpoint with its tokenizer, pooling and prompts.

        Args:
            path_or_repo_id: a local folder or a repository of the hub.
            revision: branch, tag or commit of the repository.
            cache_dir: where downloads are kept, in place of Hugging Face's default.
            token: for private repositories.
            local_files_only: never reach for the network.
            **model_keywords: dtype, device, backend, rotary_scaling_factor and the others of
                `NomicBert.from_pretrained`.

        Raises: NomicBertError: checkpoint missing, damaged or unsupported; backend that cannot run.
        """
        check_keywords(model_keywords, type(self), NomicBert.from_pretrained)
        folder = hub.resolve(
            path_or_repo_id,
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            local_files_only=local_files_only,
        )
        checkpoint = read_folder(folder, model_keywords.pop("rotary_scaling_factor", None))
        self._prompts = Prompts.of(checkpoint.prompts, checkpoint.config)
        encoder = NomicBert.from_pretrained(checkpoint, **model_keywords)
        pooling = read_pooling(checkpoint, encoder.dtype).to(encoder.device)
        self.embedding_model = EmbeddingModel(encoder, pooling)
        self.tokenizer = Tokenizer.from_settings(checkpoint.tokenizer, encoder.config.vocab_size)
        self.max_seq_length = checkpoint.limit.tokens
        self.similarity_fn_name = checkpoint.similarity
        self.graphs = Graphs()
        accept(encoder, self.encode_document, pooling.embedding_dimension)

    @classmethod
    def from_pretrained(
        cls, path_or_repo_id: str | os.PathLike[str], **keywords: Any
    ) -> "Embedder":
        """The constructor, under the name that it has in transformers."""
        return cls(path_or_repo_id, **keywords)

    def __repr__(self) -> str:
        """What was loaded, in one line."""
        model, config = self.model, self.model.config
        return (
            f"Embedder({config.model_type}, {config.num_hidden_layers} layers, "
            f"dimension {self.pooling.embedding_dimension}, pooling {self.pooling.mode}, "
            f"max_seq_length {self.max_seq_length}, {model.dtype}, {model.device})"
        )

    @property
    def model(self) -> NomicBert:
        """The encoder."""
        return self.embedding_model.encoder

    @property
    def pooling(self) -> Pooling:
        """What stands behind the encoder."""
        return self.embedding_model.pooling

    @property
    def prompts(self) -> dict[str, str]:
        """Name -> text that is put before an input."""
        return self._prompts.by_name

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.model.device

    def to(self, device: torch.device | str) -> "Embedder":
        """Move encoder and Dense layers."""
        self.embedding_model.to(device)
        return self

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write all of it in the layout of the hub, for this class or sentence-transformers."""
        parts = (self.embedding_model, self.tokenizer, self._prompts)
        save_modules(Path(folder), *parts, self.max_seq_length, self.similarity_fn_name)

    def get_sentence_embedding_dimension(self) -> int:
        """Width of a vector before truncate_dim or matryoshka_dim."""
        return self.pooling.embedding_dimension

    def batch(self, inputs: str | Iterable[str], prompt_name: str | None = None) -> PackedBatch:
        """Texts as `embedding_model` takes them, which keeps gradients as `encode` does not."""
        texts, _ = as_texts(inputs, None)
        prompt, limit = self._prompts.choose(prompt_name, None), self._limit(None)
        ids, cut = self.tokenizer.encode([prompt + text for text in texts], limit)
        warn_of_cuts(len(cut), len(ids), "texts", limit)
        return pack(ids, self.device)

    def encode(
        self,
        inputs: str | Iterable[str] | None = None,
        *,
        sentences: str | Iterable[str] | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        matryoshka_dim: int | None = None,
        truncate_dim: int | None = None,
        normalize_embeddings: bool = False,
        precision: Precision = "float32",
        ranges: np.ndarray | None = None,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        output_value: OutputValue = "sentence_embedding",
        device: Devices = None,
        batch_size: int | None = None,
        batch_tokens: int | None = None,
        max_length: int | None = None,
        truncate: Truncate = "end",
        show_progress_bar: bool | None = None,
    ) -> Any:
        """Embed texts, in eval mode and without gradients.

        On an x86-64 CPU with oneDNN a text's vector has the same bits in any batch, for one number
        of threads (in bf16 on up to 12); docs/bits.md says where this was shown.

        >>> embedder.encode(["What is TSNE?", "Who is Laurens?"], prompt_name="search_query").shape
        (2, 768)

        Args:
            inputs: one text or any number of them.
            sentences: old name of `inputs`.
            prompt_name: which of the checkpoint's prompts to put before every text.
            prompt: a text of your own to put there.
            matryoshka_dim: the checkpoint's recipe for short vectors: layer_norm where it belongs
                to it, slice, L2.
            truncate_dim: slice, nothing more.
            normalize_embeddings: L2 at the end, also where the checkpoint has none.
            precision: "float32" or "float16"; "int8" or "uint8", 256 steps over each column's
                range; "binary" or "ubinary", the signs, eight to a byte.
            ranges: (2, dim) smallest and largest of each column, for int8 and uint8. Without them
                this call's own vectors are the measure: another call will quantise differently.
            convert_to_numpy: False returns a list of tensors.
            convert_to_tensor: one tensor on the model's device; of several devices, on the CPU.
            output_value: "sentence_embedding"; "token_embeddings" returns a list of tensors
                (tokens, hidden_size), special tokens included, in the model's dtype.
            device: move the model there first. A list such as ["cuda:0", "cuda:1"] leaves it where
                it is and starts a process on each for this call, which divide the texts, and the
                CPU's threads, among them. The calling script needs `if __name__ == "__main__":`.
            batch_size: texts of a batch at most; batches are cut by tokens.
            batch_tokens: tokens of a batch at most.
            max_length: tokens of a text at most, in place of `max_seq_length`.
            truncate: "end" cuts longer texts there and warns once a call. "error" raises. "chunk"
                cuts them into windows of `max_length` that do not overlap, prompt and special
                tokens in each, and pools over the tokens of all of them; mean pooling only.
            show_progress_bar: None shows one on a terminal when the work takes long.

        Returns: (n, dim) in the order of the inputs; (dim,) for a lone text.
        Raises: ValueError, TypeError: an argument or a text that cannot be; the message names it.
        """
        texts, lone = as_texts(inputs, sentences)  # all, before the first is embedded
        request = Request(
            prompt_name=prompt_name,
            prompt=prompt,
            matryoshka_dim=matryoshka_dim,
            truncate_dim=truncate_dim,
            normalize_embeddings=normalize_embeddings,
            precision=precision,
            ranges=ranges,
            convert_to_numpy=convert_to_numpy,
            convert_to_tensor=convert_to_tensor,
            output_value=output_value,
            device=device,
            batch_size=batch_size,
            batch_tokens=batch_tokens,
            max_length=max_length,
            truncate=truncate,
            show_progress_bar=show_progress_bar,
        )
        stream, width = self._open(request)
        rows = request.gather(stream.run(iter(texts)), len(texts), width)
        return rows[0] if lone else rows

    def encode_iter(self, inputs: Iterable[str], **keywords: Any) -> Iterator[Any]:
        """Embed a stream of texts of any size, in memory that does not grow with it.

        Texts are read a window at a time (some thousands), so a vector comes before the stream has
        ended. Their numbers are those of `encode`.

        >>> for text, vector in zip(texts, embedder.encode_iter(texts, prompt_name="clustering")):
        ...     print(len(text), vector.shape)
        26 (768,)
        27 (768,)

        Args:
            inputs: any iterable of texts.
            **keywords: those of `encode`; int8 and uint8 need `ranges`.

        Returns: an iterator over vectors, (dim,) each, in the order of the inputs.
        Raises: ValueError, TypeError: an argument, at once; or a text, when it is read.
        """
        unknown = sorted(keywords.keys() - Request.__dataclass_fields__)
        refuse_unknown(unknown, self.encode_iter, Request)
        if isinstance(inputs, str):
            raise TypeError("encode_iter takes many texts: give a lone one to encode")
        request = Request(**keywords)
        stream, width = self._open(request)
        return request.each(stream.run(as_iterator(inputs)), width)

    def encode_query(self, inputs: str | Iterable[str] | None = None, **keywords: Any) -> Any:
        """`encode` with the checkpoint's prompt for queries, if it has one."""
        return self.encode(inputs, **prompted(keywords, self._prompts.query_name))

    def encode_document(self, inputs: str | Iterable[str] | None = None, **keywords: Any) -> Any:
        """`encode` with the checkpoint's prompt for documents, if it has one."""
        return self.encode(inputs, **prompted(keywords, self._prompts.document_name))

    def similarity(self, a: np.ndarray | Tensor, b: np.ndarray | Tensor) -> Tensor:
        """Similarity of each row of `a` to each row of `b`, (n, m), as the checkpoint means it."""
        return similarity(a, b, self.similarity_fn_name)

    def _limit(self, max_length: int | None) -> int:
        limit = self.max_seq_length if max_length is None else max_length
        check_limit(limit, self.tokenizer.shortest, self.model.config)
        return limit

    def _open(self, request: Request) -> tuple[Stream | Workers, int]:
        """Check a request against this checkpoint and make ready for it; the width of its vectors.

        Raises: ValueError, TypeError: what cannot be.
        """
        model = self.embedding_model
        request.check(model.pooling)
        prompt = self._prompts.choose(request.prompt_name, request.prompt)
        job = request.job(prompt, self._limit(request.max_length))
        options = request.options()
        if self.model.training:
            model.eval()  # as sentence-transformers does: no vector is drawn with dropout
        device, devices = as_place(request.device)
        if device is not None and device != self.device:
            self.to(device)
        texts = Texts(model, self.tokenizer, self._prompts, job, self.graphs)
        return open_stream(texts, options, devices), request.width(model.pooling)
