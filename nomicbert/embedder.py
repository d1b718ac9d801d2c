"""Embedder: text in, vectors out. The facade over tokenizer, packing, encoder and pooling.

Arguments that sentence-transformers has too carry its names and its meaning.
"""

import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from nomicbert.arguments import as_device, as_place, refuse_unknown
from nomicbert.loading import hub
from nomicbert.loading.folder import read_folder
from nomicbert.loading.purpose import refuse_unless_embedder
from nomicbert.loading.target import check_keywords
from nomicbert.modeling.model import NomicBert
from nomicbert.modeling.packing import PackedBatch, pack
from nomicbert.runtime import encode_types
from nomicbert.runtime.encode_types import AllEncodeKeywords, Devices, OutputValue, Vectors
from nomicbert.runtime.graphs import Graphs
from nomicbert.runtime.inputs import as_iterator, as_texts
from nomicbert.runtime.prompt_tokens import prompt_tokens
from nomicbert.runtime.request import Request, prompted
from nomicbert.runtime.settings import EmbedderSettings
from nomicbert.runtime.texts import Texts, Truncate
from nomicbert.runtime.workers import AnyStream, open_stream
from nomicbert.text.max_length import stated_limit
from nomicbert.text.prompts import Prompts
from nomicbert.text.tokenizer import Tokenizer
from nomicbert.user_warnings import warn_of_cuts
from nomicbert.vectors.embedding_model import EmbeddingModel
from nomicbert.vectors.fp8_check import accept
from nomicbert.vectors.modules import check_chosen, read_pooling, warn_of_assumption
from nomicbert.vectors.pooling import Pooling
from nomicbert.vectors.quantization import Precision
from nomicbert.vectors.similarity import VectorRows, similarity, similarity_pairwise
from nomicbert.vectors.stated import stated_similarity, stated_truncate_dim
from nomicbert_kernels import PoolMode

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from nomicbert.loading.pretrained import EmbedderKeywords, ModelKeywords


class Embedder(EmbedderSettings):
    """Embeds texts with one checkpoint.

    To fine-tune, call `embedder.embedding_model(embedder.batch(texts))`: vectors with gradients.

    Attributes:
        embedding_model: token ids -> vectors: `model` (the encoder) and `pooling`.
        graphs: CUDA graphs recorded for small batches on a GPU.
        tokenizer, prompts, default_prompt_name, max_seq_length, truncate_dim, similarity_fn_name:
            the checkpoint's; may be set, and are saved by `save_pretrained`.
    """

    def __init__(
        self,
        path_or_repo_id: str | os.PathLike[str],
        *,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        pooling: PoolMode | None = None,
        **model_keywords: "Unpack[ModelKeywords]",
    ) -> None:
        """Load a checkpoint with its tokenizer, pooling and prompts.

        Args:
            path_or_repo_id: a local folder or a repository of the hub.
            revision: branch, tag or commit of the repository.
            cache_dir: where downloads are kept, in place of Hugging Face's default.
            token: for private repositories.
            local_files_only: never reach for the network.
            pooling: "mean", "cls" or another mode for a checkpoint without modules.json, which is
                otherwise pooled by "mean" with a PoolingWarning.
            **model_keywords: of `NomicBert.from_pretrained`: device (default: the CPU; "auto": a
                GPU if there is one), dtype (default float32; "auto", "fastest"), backend, ...

        Raises: NomicBertError: checkpoint missing, damaged or unsupported; backend that cannot run.
            ValueError: pooling that the checkpoint states itself.
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
        refuse_unless_embedder(checkpoint)
        check_chosen(checkpoint, pooling)
        self._prompts = Prompts.of(checkpoint.prompts, checkpoint.config)
        self._similarity = stated_similarity(checkpoint)
        encoder = NomicBert.from_pretrained(checkpoint, **model_keywords)
        modules = read_pooling(checkpoint, encoder.dtype, pooling).to(encoder.device)
        self.embedding_model = EmbeddingModel(encoder, modules)
        self._tokenizer = Tokenizer.from_settings(checkpoint.tokenizer, encoder.config.vocab_size)
        self._max_seq_length = stated_limit(checkpoint, self._tokenizer.shortest)
        self.graphs = Graphs()
        accept(encoder, self.encode_document, modules.embedding_dimension)
        self._truncate_dim = stated_truncate_dim(checkpoint, modules)
        warn_of_assumption(checkpoint, pooling)

    @classmethod
    def from_pretrained(
        cls, path_or_repo_id: str | os.PathLike[str], **keywords: "Unpack[EmbedderKeywords]"
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
        """The modules after the encoder."""
        return self.embedding_model.pooling

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.model.device

    def to(self, device: torch.device | str) -> "Embedder":
        """Move encoder and Dense layers; ValueError: a device that cannot compute here."""
        if device is None:
            raise ValueError("device must be one device's name, not None")
        self.embedding_model.to(as_device(device))
        return self

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write the hub layout, for this class or sentence-transformers, with a README.md."""
        self._prompts.check()  # before anything is written
        with self._carded(folder):
            self.model.save_files(folder)
            self.save_settings(folder)

    def batch(self, inputs: str | Iterable[str], prompt_name: str | None = None) -> PackedBatch:
        """Tokenise and pack texts for `embedding_model`, whose call keeps gradients."""
        texts, _ = as_texts(inputs)
        prompt, limit = self._prompts.choose(prompt_name, None), self._limit(None)
        ids, cut = self.tokenizer.encode([prompt + text for text in texts], limit)
        warn_of_cuts(len(cut), len(ids), "texts", limit)
        return pack(ids, self.device, prompt_tokens(self.tokenizer, prompt, limit))

    @encode_types.as_encode
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
    ) -> Vectors | Tensor | list[Tensor]:
        """Embed texts, in eval mode and without gradients (same bits in any batch: docs/bits.md).

        >>> embedder.encode(["What is TSNE?", "Who is Laurens?"], prompt_name="search_query").shape
        (2, 768)

        Args:
            inputs: one text or any number of texts.
            sentences: old name of `inputs`.
            prompt_name: the checkpoint's prompt to put before every text.
            prompt: your own text to put there; it wins over prompt_name, with a warning.
            matryoshka_dim: the checkpoint's recipe for short vectors: (layer_norm,) slice, L2.
            truncate_dim: slice only; `self.truncate_dim` if the call gives no width.
            normalize_embeddings: apply L2 at the end, as truncate "mean" and some checkpoints do.
            precision: "float32", "float16", "int8" or "uint8" (256 steps over each column's
                range), "binary" or "ubinary" (the signs, eight per byte).
            ranges: (2, dim) minimum and maximum per column for int8 and uint8; by default those of
                this call's vectors, so that another call quantises differently.
            convert_to_numpy: False returns a list of tensors.
            convert_to_tensor: return one tensor on the model's device; on the CPU for several.
            output_value: "sentence_embedding", or "token_embeddings" for a list of tensors
                (tokens, hidden_size) in the model's dtype, special tokens included.
            device: move the model there first. A list such as ["cuda:0", "cuda:1"] starts one
                process per device for this call; the script needs `if __name__ == "__main__":`.
            batch_size: maximum texts per batch; normally batch_tokens decides.
            batch_tokens: maximum tokens per batch.
            max_length: maximum tokens per text, in place of `max_seq_length`.
            truncate: "end" cuts longer texts and warns once per call, "error" raises. In windows:
                "chunk" pools over all tokens, "mean" averages unit vectors (docs/encode.md).
            show_progress_bar: by default shown on a terminal when the work takes long.

        Returns: (n, dim) in the order of the inputs; (dim,) for a single text.
        Raises: ValueError, TypeError: invalid argument or text; the message names it.
        """
        request = Request.among(locals()).with_default(self.truncate_dim)
        texts, lone = as_texts(inputs, sentences)  # all, before the first is embedded
        stream, width = self.stream(request)
        rows = request.gather(stream.run(iter(texts)), len(texts), width)
        return rows[0] if lone else rows

    @encode_types.as_encode_iter
    def encode_iter(
        self, inputs: Iterable[str], **keywords: "Unpack[AllEncodeKeywords]"
    ) -> Iterator[Vectors | Tensor]:
        """Embed a stream of texts of any length in constant memory; same vectors as `encode`.

        Texts are read in windows of some thousands, so vectors come before the stream ends.

        >>> [vector.shape for vector in embedder.encode_iter(texts, prompt_name="clustering")]
        [(768,), (768,)]

        Args:
            inputs: any iterable of texts.
            **keywords: those of `encode`; int8 and uint8 need `ranges`.

        Returns: vectors (dim,), in the order of the inputs.
        Raises: ValueError, TypeError: invalid argument, at once; invalid text, when it is read.
        """
        unknown = sorted(keywords.keys() - Request.__dataclass_fields__)
        refuse_unknown(unknown, self.encode_iter, Request)
        if isinstance(inputs, str):
            raise TypeError("encode_iter takes many texts: give a lone one to encode")
        request = Request(**keywords).with_default(self.truncate_dim)
        stream, width = self.stream(request)
        return request.each(stream.run(as_iterator(inputs)), width)

    @encode_types.as_encode
    def encode_query(
        self, inputs: str | Iterable[str] | None = None, **keywords: "Unpack[AllEncodeKeywords]"
    ) -> Vectors | Tensor | list[Tensor]:
        """`encode`, with its keywords and the checkpoint's prompt for queries, if any."""
        keywords = prompted(keywords, self._prompts.query_name, self.encode_query)
        return self.encode(inputs, **keywords)

    @encode_types.as_encode
    def encode_document(
        self, inputs: str | Iterable[str] | None = None, **keywords: "Unpack[AllEncodeKeywords]"
    ) -> Vectors | Tensor | list[Tensor]:
        """`encode`, with its keywords and the checkpoint's prompt for documents, if any."""
        keywords = prompted(keywords, self._prompts.document_name, self.encode_document)
        return self.encode(inputs, **keywords)

    def similarity(self, a: VectorRows, b: VectorRows) -> Tensor:
        """Similarity of all rows of `a` to all rows of `b`, (n, m), by `similarity_fn_name`."""
        return similarity(a, b, self.similarity_fn_name)

    def similarity_pairwise(self, a: VectorRows, b: VectorRows) -> Tensor:
        """Similarity of each row of `a` to the row of `b` next to it, (n,)."""
        return similarity_pairwise(a, b, self.similarity_fn_name)

    @encode_types.as_token_count
    def token_count(
        self, inputs: str | Iterable[str], prompt_name: str | None = None
    ) -> int | list[int]:
        """Tokens of each text before truncation, prompt and special tokens included."""
        texts, lone = as_texts(inputs)
        prompt = self._prompts.choose(prompt_name, None)
        counts = self.tokenizer.count([prompt + text for text in texts])
        return counts[0] if lone else counts

    def stream(self, request: Request) -> tuple[AnyStream, int]:
        """Check a request and make the model ready; return the stream and the vectors' width."""
        model = self.embedding_model
        request.check(model.pooling)
        prompt = self._prompts.choose(request.prompt_name, request.prompt)
        job = request.job(prompt, self._limit(request.max_length))
        options = request.options()
        if self.model.training or model.pooling.training:
            model.eval()  # as sentence-transformers does: no vector is drawn with dropout
        device, devices = as_place(request.device)
        if device is not None and device != self.device:
            self.to(device)
        texts = Texts(model, self.tokenizer, self._prompts, job, self.graphs)
        return open_stream(texts, options, devices), request.width(model.pooling)
