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

from nomicbert.arguments import as_device, as_devices, refuse_unknown
from nomicbert.loading import hub
from nomicbert.loading.target import check_target
from nomicbert.modeling.model import NomicBert
from nomicbert.runtime.batch_budget import batch_tokens
from nomicbert.runtime.batches import as_iterator, checked
from nomicbert.runtime.graphs import Graphs
from nomicbert.runtime.request import Devices, OutputValue, Request
from nomicbert.runtime.stream import Stream, Truncate
from nomicbert.runtime.workers import Workers
from nomicbert.text.max_length import check_limit, read_limit
from nomicbert.text.prompts import DOCUMENT_NAMES, QUERY_NAMES, Prompts
from nomicbert.text.tokenizer import Tokenizer
from nomicbert.vectors.fp8_check import accept
from nomicbert.vectors.modules import module_folders, read_pooling
from nomicbert.vectors.pooling import Finish
from nomicbert.vectors.quantization import Precision
from nomicbert.vectors.saving import save_modules
from nomicbert.vectors.similarity import similarity, stated_similarity


class Embedder:
    """Embeds texts with one checkpoint.

    Attributes:
        model: the encoder.
        tokenizer: text -> token ids.
        pooling: what stands behind the encoder.
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
        known = NomicBert.from_pretrained.__kwdefaults__ or {}
        unknown = [name for name in model_keywords if name not in known]
        refuse_unknown(unknown, type(self), NomicBert.from_pretrained)
        target = ("dtype", "torch_dtype", "device", "device_map", "backend")
        check_target(**{key: model_keywords.get(key, known[key]) for key in target})
        folder = hub.resolve(
            path_or_repo_id,
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            local_files_only=local_files_only,
        )
        encoder = next(
            (path for kind, path in module_folders(folder) if kind == "Transformer"), folder
        )
        self.model = NomicBert.from_pretrained(encoder, **model_keywords)
        config = self.model.config
        self.tokenizer = Tokenizer.from_folder(encoder, config.vocab_size)
        self.pooling = read_pooling(folder, config, self.model.dtype).to(self.device)
        self._prompts = Prompts.from_folder(folder, config)
        self.max_seq_length = read_limit(encoder, config).tokens
        self.similarity_fn_name = stated_similarity(folder)
        self.graphs = Graphs()
        accept(self.model, self.encode_document, self.pooling.embedding_dimension)

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
    def prompts(self) -> dict[str, str]:
        """Name -> text that is put before an input."""
        return self._prompts.by_name

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.model.device

    def to(self, device: torch.device | str) -> "Embedder":
        """Move encoder and Dense layers."""
        self.model.to(device)
        self.pooling.to(device)
        return self

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write all of it in the layout of the hub, for this class or sentence-transformers."""
        parts = (self.model, self.tokenizer, self.pooling, self._prompts)
        save_modules(Path(folder), *parts, self.max_seq_length, self.similarity_fn_name)

    def get_sentence_embedding_dimension(self) -> int:
        """Width of a vector before truncate_dim or matryoshka_dim."""
        return self.pooling.embedding_dimension

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
        if inputs is None and sentences is None:
            raise TypeError("encode needs inputs: one text or any number of them")
        if inputs is not None and sentences is not None:
            raise TypeError("give inputs or sentences (its old name), not both")
        given = sentences if inputs is None else inputs
        # all are looked at before the first is embedded
        texts = list(checked([given] if isinstance(given, str) else as_iterator(given)))
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
        return rows[0] if isinstance(given, str) else rows

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
        known = Request.__dataclass_fields__
        unknown = [name for name in keywords if name not in known]
        refuse_unknown(unknown, self.encode_iter, Request)
        if isinstance(inputs, str):
            raise TypeError("encode_iter takes many texts: give a lone one to encode")
        request = Request(**keywords)
        stream, width = self._open(request)
        return request.each(stream.run(as_iterator(inputs)), width)

    def encode_query(self, inputs: str | Iterable[str] | None = None, **keywords: Any) -> Any:
        """`encode` with the checkpoint's prompt for queries, if it has one."""
        return self._encode_as(QUERY_NAMES, inputs, keywords)

    def encode_document(self, inputs: str | Iterable[str] | None = None, **keywords: Any) -> Any:
        """`encode` with the checkpoint's prompt for documents, if it has one."""
        return self._encode_as(DOCUMENT_NAMES, inputs, keywords)

    def similarity(self, a: np.ndarray | Tensor, b: np.ndarray | Tensor) -> Tensor:
        """Similarity of each row of `a` to each row of `b`, (n, m), as the checkpoint means it."""
        return similarity(a, b, self.similarity_fn_name)

    def _encode_as(
        self, names: tuple[str, ...], inputs: str | Iterable[str] | None, keywords: dict[str, Any]
    ) -> Any:
        if keywords.get("prompt_name") is None and keywords.get("prompt") is None:
            keywords["prompt_name"] = self._prompts.first_of(names)
        return self.encode(inputs, **keywords)

    def _limit(self, max_length: int | None) -> int:
        least = len(self.tokenizer.prefix) + len(self.tokenizer.suffix) + 1
        limit = self.max_seq_length if max_length is None else max_length
        return check_limit(limit, least, self.model.config)

    def _open(self, request: Request) -> tuple[Stream, int]:
        """Check a request against this checkpoint and make ready for it; the width of its vectors.

        Raises: ValueError, TypeError: what cannot be.
        """
        request.check(self.pooling.mode)
        finish = Finish(request.matryoshka_dim, request.truncate_dim, request.normalize_embeddings)
        self.pooling.check(finish)
        prompt = self._prompts.choose(request.prompt_name, request.prompt)
        limit = self._limit(request.max_length)
        if self.model.training:
            self.model.eval()  # as sentence-transformers does: no vector is drawn with dropout
        device, devices = request.device, None
        if not isinstance(device, str | torch.device | None):
            devices = as_devices(device)
        elif device is not None and (target := as_device(device)) != self.device:
            self.to(target)
        width = request.matryoshka_dim or request.truncate_dim or self.pooling.embedding_dimension
        job = request.job(prompt, limit, finish, batch_tokens(self.model))
        parts = (self.model, self.tokenizer, self.pooling, self._prompts, job, self.graphs)
        stream = Workers(devices, request.batch_tokens, *parts) if devices else Stream(*parts)
        return stream, width
