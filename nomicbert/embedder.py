"""Embedder: text in, vectors out. The facade over tokenizer, packing, encoder and pooling.

Arguments that sentence-transformers has too carry its names and its meaning.
"""

import os
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from nomicbert import hub
from nomicbert.keywords import as_device, check_target, refuse_unknown
from nomicbert.model import NomicBert
from nomicbert.modules import module_folders, read_pooling
from nomicbert.packing import pack
from nomicbert.pooling import Finish
from nomicbert.prompts import DOCUMENT_NAMES, QUERY_NAMES, Prompts
from nomicbert.runtime.batches import token_batches
from nomicbert.settings import Settings, read_json
from nomicbert.similarity import similarity
from nomicbert.tokenizer import Tokenizer, as_texts

# Texts that are tokenised and sorted by length at a time.
WINDOW = 8192
# Tokens of a batch when the call does not say.
BATCH_TOKENS = 4096
# A progress bar that nobody asked for shows itself after as many seconds.
PROGRESS_DELAY = 2.0


class TruncationWarning(UserWarning):
    """Texts were longer than the limit and were cut."""


class Embedder:
    """Embeds texts with one checkpoint.

    Attributes:
        model: the encoder.
        tokenizer: text -> token ids.
        pooling: what stands behind the encoder.
        prompts: the checkpoint's prompts by name.
        max_seq_length: tokens of a text at most, special ones included; may be set.
        similarity_fn_name: "cosine", "dot", "euclidean" or "manhattan".
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

        Raises: NomicBertError: anything of the checkpoint missing, damaged or unsupported.
        """
        known = NomicBert.from_pretrained.__kwdefaults__ or {}
        unknown = {k: v for k, v in model_keywords.items() if k not in known}
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
        limits = _optional(encoder / "sentence_bert_config.json")
        self.tokenizer.lower_case = limits.flag("do_lower_case", default=False)
        stated = limits.size("max_seq_length", default=self.tokenizer.model_max_length or 0)
        stated = stated or config.max_position_embeddings
        self.max_seq_length = min(stated, self._longest or stated)
        settings = _optional(folder / "config_sentence_transformers.json")
        self.similarity_fn_name = settings.get("similarity_fn_name", default="cosine")

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
    def _longest(self) -> int | None:
        """Tokens that learned positions allow; None for a rotary model, which has no such bound."""
        config = self.model.config
        return None if config.rotary_dim else config.max_position_embeddings

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
        precision: str = "float32",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        output_value: str = "sentence_embedding",
        device: torch.device | str | None = None,
        batch_size: int | None = None,
        batch_tokens: int | None = None,
        max_length: int | None = None,
        truncate: str = "end",
        show_progress_bar: bool | None = None,
    ) -> Any:
        """Embed texts, in eval mode and without gradients.

        On a CPU with oneDNN a text's vector has the same bits whatever texts are beside it (in bf16
        on up to 12 threads).

        Args:
            inputs: one text or any number of them.
            sentences: old name of `inputs`.
            prompt_name: which of the checkpoint's prompts to put before every text.
            prompt: a text of your own to put there.
            matryoshka_dim: the checkpoint's recipe for short vectors: layer_norm where it belongs
                to it, slice, L2.
            truncate_dim: slice, nothing more.
            normalize_embeddings: L2 at the end, also where the checkpoint has none.
            precision: "float32".
            convert_to_numpy: False returns a list of tensors.
            convert_to_tensor: one tensor on the model's device.
            output_value: "sentence_embedding".
            device: move the model there first.
            batch_size: texts of a batch at most; batches are cut by tokens.
            batch_tokens: tokens of a batch at most.
            max_length: tokens of a text at most, in place of `max_seq_length`.
            truncate: "end" cuts longer texts there and warns once a call.
            show_progress_bar: None shows one on a terminal when the work takes long.

        Returns: (n, dim) fp32 in the order of the inputs; (dim,) for a lone text.
        Raises: ValueError, TypeError: an argument that cannot be; the message names it.
        """
        for name, value, only in (
            ("precision", precision, "float32"),
            ("output_value", output_value, "sentence_embedding"),
            ("truncate", truncate, "end"),
        ):
            if value != only:
                raise ValueError(f"{name} must be {only!r} in this version, not {value!r}")
        if inputs is None and sentences is None:
            raise TypeError("encode needs inputs: one text or any number of them")
        if inputs is not None and sentences is not None:
            raise TypeError("give inputs or sentences (its old name), not both")
        given = sentences if inputs is None else inputs
        texts = as_texts(given)
        if self.model.training:
            self.model.eval()  # as sentence-transformers does: no vector is drawn with dropout
        if device is not None and (target := as_device(device)) != self.device:
            self.to(target)
        finish = Finish(matryoshka_dim, truncate_dim, normalize_embeddings)
        self.pooling.check(finish)
        prefix = self._prompts.choose(prompt_name, prompt)
        if prompt is None:
            self._prompts.warn_if_missing(prefix, texts)
        dim = matryoshka_dim or truncate_dim or self.pooling.embedding_dimension
        place = self.device if convert_to_tensor else "cpu"
        out = torch.empty(len(texts), dim, dtype=torch.float32, device=place)
        with tqdm(
            total=len(texts),
            desc="Embedding",
            unit="text",
            # tqdm's own rule for None: on a terminal only
            disable=None if show_progress_bar is None else not show_progress_bar,
            delay=PROGRESS_DELAY if show_progress_bar is None else 0,
        ) as bar:
            limit = self._check_length(max_length)
            budget = BATCH_TOKENS if batch_tokens is None else batch_tokens
            for indices, vectors in self._batches(texts, prefix, finish, limit, budget, batch_size):
                out[torch.tensor(indices)] = vectors.to(out.device)
                bar.update(len(indices))
        result: Any = out
        if not convert_to_tensor:
            result = out.numpy() if convert_to_numpy else list(out)
        return result[0] if isinstance(given, str) else result

    def encode_query(self, inputs: str | Iterable[str], **keywords: Any) -> Any:
        """`encode` with the checkpoint's prompt for queries, if it has one."""
        return self._encode_as(QUERY_NAMES, inputs, keywords)

    def encode_document(self, inputs: str | Iterable[str], **keywords: Any) -> Any:
        """`encode` with the checkpoint's prompt for documents, if it has one."""
        return self._encode_as(DOCUMENT_NAMES, inputs, keywords)

    def similarity(self, a: np.ndarray | Tensor, b: np.ndarray | Tensor) -> Tensor:
        """Similarity of each row of `a` to each row of `b`, (n, m), as the checkpoint means it."""
        return similarity(a, b, self.similarity_fn_name)

    def _encode_as(
        self, names: tuple[str, ...], inputs: str | Iterable[str], keywords: dict[str, Any]
    ) -> Any:
        if keywords.get("prompt_name") is None and keywords.get("prompt") is None:
            keywords["prompt_name"] = self._prompts.first_of(names)
        return self.encode(inputs, **keywords)

    def _check_length(self, max_length: int | None) -> int:
        limit = self.max_seq_length if max_length is None else max_length
        least = len(self.tokenizer.prefix) + len(self.tokenizer.suffix) + 1
        most = self._longest
        if (
            not isinstance(limit, int | np.integer)
            or limit < least
            or (most is not None and limit > most)
        ):
            wanted = f"at least {least}" if most is None else f"{least} to {most}"
            raise ValueError(f"max_length (or max_seq_length) must be {wanted}, not {limit}")
        return limit

    def _batches(
        self,
        texts: list[str],
        prefix: str,
        finish: Finish,
        limit: int,
        batch_tokens: int,
        batch_size: int | None,
    ) -> Iterator[tuple[list[int], Tensor]]:
        """(indices of texts, their vectors), batch by batch."""
        cut = 0
        for start in range(0, len(texts), WINDOW):
            window = [prefix + text for text in texts[start : start + WINDOW]]
            ids, cut_here = self.tokenizer.encode(window, limit)
            cut += cut_here
            for indices in token_batches(list(map(len, ids)), batch_tokens, batch_size):
                with torch.inference_mode():
                    batch = pack([ids[i] for i in indices], self.device)
                    vectors = self.pooling(self.model, batch, finish)
                yield [start + i for i in indices], vectors
        if cut:
            warnings.warn(
                f"{cut} of {len(texts)} texts were longer than {limit} tokens and were cut there",
                TruncationWarning,
                stacklevel=3,
            )


def _optional(path: Path) -> Settings:
    """A settings file that a checkpoint may lack."""
    return Settings(read_json(path) if path.is_file() else {}, path)
