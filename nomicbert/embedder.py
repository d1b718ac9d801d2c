"""Embedder: text in, vectors out. The facade over tokenizer, packing, encoder and pooling.

Arguments that sentence-transformers has too carry its names and its meaning.
"""

import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from nomicbert.arguments import as_place, refuse_unknown
from nomicbert.loading import hub
from nomicbert.loading.folder import read_folder
from nomicbert.loading.purpose import refuse_unless_embedder
from nomicbert.loading.sentence_keywords import NAMES, translate
from nomicbert.loading.target import check_keywords
from nomicbert.modeling.model import NomicBert
from nomicbert.runtime import encode_types
from nomicbert.runtime.chunks import CHUNK_KEYWORDS, ChunkEncoder, Chunks
from nomicbert.runtime.encode_keywords import (
    AllEncodeKeywords,
    CallKeywords,
    Devices,
    OutputValue,
    TaskName,
)
from nomicbert.runtime.encode_types import Vectors
from nomicbert.runtime.features import Processing, TextOutputs
from nomicbert.runtime.graphs import Graphs
from nomicbert.runtime.inputs import as_iterator, as_texts
from nomicbert.runtime.pool import WorkerPool
from nomicbert.runtime.request import Request, prompted
from nomicbert.runtime.sentence_transformers_names import SentenceTransformersNames
from nomicbert.runtime.texts import Texts, Truncate
from nomicbert.runtime.workers import AnyStream, open_stream
from nomicbert.text.max_length import stated_limit, within_positions
from nomicbert.text.prompts import Prompts
from nomicbert.text.tokenizer import Tokenizer
from nomicbert.vectors.embedding_model import EmbeddingModel
from nomicbert.vectors.fp8_check import accept
from nomicbert.vectors.modules import check_chosen, read_pooling, warn_of_assumption
from nomicbert.vectors.quantization import Precision
from nomicbert.vectors.stated import stated_similarity, stated_truncate_dim
from nomicbert_kernels import PoolMode

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from nomicbert.loading.sentence_keywords import ConstructorKeywords, FromPretrainedKeywords
    from nomicbert.runtime.encode_keywords import ChunkKeywords


class Embedder(SentenceTransformersNames):
    """Embeds texts with one checkpoint, in place of sentence-transformers' SentenceTransformer.

    To fine-tune, call `embedder.embedding_model(embedder.batch(texts))`: vectors with gradients.

    Attributes:
        embedding_model: token ids -> vectors: `model` (the encoder) and `pooling`.
        graphs: CUDA graphs recorded for small batches on a GPU.
        tokenizer, prompts, default_prompt_name, max_seq_length, truncate_dim, similarity_fn_name:
            the checkpoint's; may be set, and are saved by `save_pretrained`.
    """

    def __init__(
        self,
        path_or_repo_id: str | os.PathLike[str] | None = None,
        *,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        pooling: PoolMode | None = None,
        **keywords: "Unpack[ConstructorKeywords]",
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
            **keywords: of `NomicBert.from_pretrained`: device (default: the CPU; "auto": a GPU if
                there is one), dtype (default float32; "auto", "fastest"), ..., but config; and
                those of sentence-transformers: model_name_or_path, prompts, default_prompt_name,
                truncate_dim, similarity_fn_name, model_kwargs, ... (`SentenceKeywords`).

        Raises: NomicBertError: checkpoint missing, damaged or unsupported; backend that cannot run.
            TypeError, ValueError: an argument that is not known, cannot be honoured, or contradicts
                the checkpoint; the message names it.
        """
        location = {"path_or_repo_id": path_or_repo_id, "revision": revision, "token": token}
        location |= {"cache_dir": cache_dir, "local_files_only": local_files_only}
        wanted = translate(location, keywords)
        check_keywords(wanted.model, type(self), NomicBert.from_pretrained, more=NAMES)
        folder = hub.resolve(**wanted.location)
        checkpoint = read_folder(folder, wanted.model.pop("rotary_scaling_factor", None))
        checkpoint = wanted.truncating(checkpoint)
        refuse_unless_embedder(checkpoint)
        check_chosen(checkpoint, pooling)
        prompts = Prompts.of(checkpoint.prompts, checkpoint.config)
        self._prompts = prompts.updated(wanted.prompts, wanted.default_prompt_name)
        self._similarity = stated_similarity(checkpoint)
        encoder = NomicBert.from_pretrained(checkpoint, **wanted.model)
        modules = read_pooling(checkpoint, encoder.dtype, pooling).to(encoder.device)
        self.embedding_model = EmbeddingModel(encoder, modules)
        self._tokenizer = Tokenizer.from_settings(checkpoint.tokenizer, encoder.config.vocab_size)
        self._max_seq_length = stated_limit(checkpoint, self._tokenizer.shortest)
        self.graphs = Graphs()
        accept(encoder, self.encode_document, modules.embedding_dimension)
        if wanted.tokenizer_limit is not None:
            self.max_seq_length = within_positions(wanted.tokenizer_limit, encoder.config)
        self._truncate_dim = stated_truncate_dim(checkpoint, modules)
        for name, value in wanted.settings.items():
            setattr(self, name, value)
        warn_of_assumption(checkpoint, pooling)

    @classmethod
    def from_pretrained(
        cls,
        path_or_repo_id: str | os.PathLike[str] | None = None,
        **keywords: "Unpack[FromPretrainedKeywords]",
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
        precision: Precision | None = "float32",
        ranges: np.ndarray | None = None,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        output_value: OutputValue | None = "sentence_embedding",
        device: Devices = None,
        pool: WorkerPool | None = None,
        chunk_size: int | None = None,
        batch_size: int | None = None,
        batch_tokens: int | None = None,
        max_length: int | None = None,
        processing_kwargs: Processing | None = None,
        truncate: Truncate = "end",
        task: TaskName | None = None,
        show_progress_bar: bool | None = None,
    ) -> Vectors | Tensor | list[Tensor] | TextOutputs | list[TextOutputs]:
        """Embed texts, in eval mode and without gradients (same bits in any batch: docs/bits.md).

        >>> embedder.encode(["What is TSNE?", "Who is Laurens?"], prompt_name="search_query").shape
        (2, 768)

        Args:
            inputs: one text or any number of texts. Arguments may follow by position in the order
                of sentence-transformers: `runtime.positions`.
            sentences: old name of `inputs`.
            prompt_name: the checkpoint's prompt to put before every text.
            prompt: your own text to put there; it wins over prompt_name, with a warning.
            matryoshka_dim: the checkpoint's recipe for short vectors: (layer_norm,) slice, L2.
            truncate_dim: slice only; `self.truncate_dim` if the call gives no width.
            normalize_embeddings: apply L2 at the end, as truncate "mean" and some checkpoints do.
            precision: "float32" (or None), "float16", "int8" or "uint8" (256 steps over each
                column's range), "binary" or "ubinary" (the signs, eight per byte).
            ranges: (2, dim) minimum and maximum per column for int8 and uint8; by default those of
                this call's vectors, so that another call quantises differently.
            convert_to_numpy: False returns a list of tensors.
            convert_to_tensor: return one tensor on the model's device; on the CPU for several.
            output_value: "sentence_embedding"; "token_embeddings" for a list of tensors (tokens,
                hidden_size) in the model's dtype, special tokens included; None for a dictionary
                per text with both and the token ids, `features.TextOutputs`.
            device: move the model there first. A list such as ["cuda:0", "cuda:1"] starts one
                process per device for this call; the script needs `if __name__ == "__main__":`.
            pool: processes of `start_multi_process_pool`, in place of such a list.
            chunk_size: texts that one of several processes gets at a time.
            batch_size: maximum texts per batch; normally batch_tokens decides.
            batch_tokens: maximum tokens per batch.
            max_length: maximum tokens per text, in place of `max_seq_length`.
            processing_kwargs: the same as {"text": {"max_length": ...}}.
            truncate: "end" cuts longer texts and warns once per call, "error" raises. In windows:
                "chunk" pools over all tokens, "mean" averages unit vectors (docs/encode.md).
            task: "query" or "document": chooses nothing, because no checkpoint here has two routes.
            show_progress_bar: by default shown on a terminal when the work takes long.

        Returns: (n, dim) in the order of the inputs; (dim,) for a single text.
        Raises: ValueError, TypeError: invalid argument or text; the message names it.
        """
        request = Request.among(locals()).with_default(self.truncate_dim)
        texts, lone = as_texts(inputs, sentences)  # all, before the first is embedded
        if request.wants_all:
            outputs = self._all_outputs(texts, request)
            return outputs[0] if lone else outputs
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
        if request.wants_all:
            raise ValueError("encode_iter gives vectors or token_embeddings: give output_value")
        stream, width = self.stream(request)
        return request.each(stream.run(as_iterator(inputs)), width)

    @encode_types.as_encode
    def encode_query(
        self, inputs: str | Iterable[str] | None = None, **keywords: "Unpack[CallKeywords]"
    ) -> Vectors | Tensor | list[Tensor] | TextOutputs | list[TextOutputs]:
        """`encode`, with its keywords and the checkpoint's prompt for queries, if any."""
        return self.encode(**prompted(keywords, self._prompts.query_name, "query", inputs))

    @encode_types.as_encode
    def encode_document(
        self, inputs: str | Iterable[str] | None = None, **keywords: "Unpack[CallKeywords]"
    ) -> Vectors | Tensor | list[Tensor] | TextOutputs | list[TextOutputs]:
        """`encode`, with its keywords and the checkpoint's prompt for documents, if any."""
        return self.encode(**prompted(keywords, self._prompts.document_name, "document", inputs))

    def encode_chunks(
        self,
        inputs: str | Iterable[str],
        *,
        chunk_tokens: int | None = None,
        chunk_overlap: int = 0,
        late: bool | None = None,
        **keywords: "Unpack[ChunkKeywords]",
    ) -> Chunks:
        """Embed long texts chunk by chunk: a vector for each, and where it is in its text.

        Args:
            inputs: one text or any number of them, of any length.
            chunk_tokens: limit without special tokens and prompt; None: 256, if they fit.
            chunk_overlap: tokens at most that a chunk shares with the one before.
            late: encode up to `max_length` tokens of a text at once, and pool over the tokens of
                each chunk; False: each chunk alone. None: late where pooling is by mean.
            **keywords: of `encode`: `ChunkKeywords`.
        Returns: all chunks, in the order of the texts. Raises: as `encode`.
        """
        unknown = sorted(keywords.keys() - CHUNK_KEYWORDS)
        refuse_unknown(unknown, self.encode_chunks, more=CHUNK_KEYWORDS)
        texts, request = as_texts(inputs)[0], Request(**keywords).with_default(self.truncate_dim)
        task = self.task_of(request)
        return ChunkEncoder(task, request, chunk_tokens, chunk_overlap, late).encode(texts)

    def stream(self, request: Request) -> tuple[AnyStream, int]:
        """Check a request and make the model ready; return the stream and the vectors' width."""
        texts, options = self.task_of(request), request.options()
        device, devices = as_place(request.device)
        if device is not None and device != self.device:
            self.to(device)
        return open_stream(texts, options, devices, request.pool), request.width(self.pooling)

    def task_of(self, request: Request) -> Texts:
        """Check a request and make the model ready."""
        model = self.embedding_model
        request.check(model.pooling)
        prompt = self._prompts.choose(request.prompt_name, request.prompt)
        job = request.job(prompt, self._limit(request.max_length))
        if self.model.training or model.pooling.training:
            model.eval()  # as sentence-transformers does: no vector is drawn with dropout
        return Texts(model, self.tokenizer, self._prompts, job, self.graphs)
