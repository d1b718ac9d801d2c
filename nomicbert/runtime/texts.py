"""Texts -> vectors, or hidden states of tokens: the Task that a stream runs for `Embedder`."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from nomicbert.errors import TextError
from nomicbert.modeling.packing import PackedBatch, pack
from nomicbert.modeling.plain_layers import refuse_hooks
from nomicbert.runtime.batch_budget import batch_tokens
from nomicbert.runtime.batch_loop import BatchLoop
from nomicbert.runtime.batches import text_windows
from nomicbert.runtime.graphs import Encode, Graphs
from nomicbert.runtime.inputs import checked
from nomicbert.runtime.prompt_tokens import prompt_tokens as count_prompt_tokens
from nomicbert.runtime.stream import Rows, Tokenised
from nomicbert.text.prompts import Prompts
from nomicbert.text.tokenizer import CHARACTERS_PER_TOKEN, Tokenizer
from nomicbert.vectors.embedding_model import EmbeddingModel
from nomicbert.vectors.pooling import Finish
from nomicbert.vectors.windows import OVERLAP, mean_of_windows, token_mean

Truncate = Literal["end", "error", "chunk", "mean"]
# Those that read a text in windows -> tokens that a window shares with the one before.
OVERLAPS: dict[str, int] = {"chunk": 0, "mean": OVERLAP}


def too_long(limit: int) -> str:
    """What is wrong with a text that is longer than `limit` tokens, with truncate "error"."""
    return f"is longer than {limit} tokens: shorten it, or choose truncate 'end', 'chunk' or 'mean'"


@dataclass(frozen=True)
class Job:
    """Options of one call that concern its texts.

    Attributes:
        prompt: prefix of every text.
        prompt_is_chosen: the caller chose a prompt (maybe empty), so no reminder is given.
        max_length: limit of tokens per text, or per window of a text.
        truncate: treatment of longer texts.
        finish: steps after pooling.
        token_embeddings: return the hidden states of every token instead of one vector per text.
    """

    prompt: str
    prompt_is_chosen: bool
    max_length: int
    truncate: Truncate
    finish: Finish
    token_embeddings: bool


class Texts:
    """A Task: see `stream`.

    Rows are vectors (n, dim) fp32; or, for token embeddings, n tensors (tokens, hidden_size) in the
    model's dtype.
    """

    inputs = "texts"
    doing = "Embedding"

    def __init__(
        self,
        model: EmbeddingModel,
        tokenizer: Tokenizer,
        prompts: Prompts,
        job: Job,
        graphs: Graphs,
    ) -> None:
        """`graphs` holds the CUDA graphs recorded so far and is shared by all calls."""
        self.model = model
        self.tokenizer = tokenizer
        self.prompts = prompts
        self.job = job
        self.graphs = graphs
        self.max_length = job.max_length

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self.model.device

    def batch_tokens(self) -> int:
        """See Task."""
        return batch_tokens(self.model.encoder)

    def read(self, inputs: Iterable[object]) -> Iterator[str]:
        """See Task; warns once if the checkpoint needs a prompt and a text has none."""
        texts = checked(inputs)
        return texts if self.job.prompt_is_chosen else self.prompts.watch(self.job.prompt, texts)

    def windows(self, inputs: Iterable[str]) -> Iterator[list[str]]:
        """See Task."""
        return text_windows(inputs, self._useful)

    def characters(self, inputs: list[str]) -> list[int]:
        """See Task."""
        useful = self._useful
        return [len(text) if useful is None else min(len(text), useful) for text in inputs]

    @property
    def _useful(self) -> int | None:
        # characters beyond the limit are never tokenised, except where windows reach them
        windowed = self.job.truncate in OVERLAPS
        return None if windowed else self.job.max_length * CHARACTERS_PER_TOKEN

    def tokenise(self, window: list[str]) -> Tokenised:
        """Token ids of each text; with truncate "chunk" and "mean" a list of ids per window."""
        job = self.job
        overlap = OVERLAPS.get(job.truncate)
        if overlap is not None:
            parts = self.tokenizer.encode_windows(window, job.prompt, job.max_length, overlap)
            return Tokenised([sum(map(len, part)) for part in parts], [], parts)
        ids, cut = self.tokenizer.encode([job.prompt + text for text in window], job.max_length)
        return Tokenised(list(map(len, ids)), cut, ids)

    @torch.inference_mode()
    def encode(self, window: Tokenised, first: int, loop: BatchLoop) -> Rows:
        """See Task.

        Raises: TextError: a text is too long, with truncate "error".
        """
        job = self.job
        if window.cut and job.truncate == "error":
            raise TextError(first + window.cut[0], too_long(job.max_length))
        if job.truncate == "chunk":
            return self._joined(window.ids, loop)
        if job.truncate == "mean":
            return self._averaged(window.ids, loop)
        if job.token_embeddings:
            return self._hidden(window.ids, loop)
        return self.vectors(window.ids, loop)

    @cached_property
    def _encode(self) -> Encode:
        """The model's encode function, on a GPU with graphs; chosen once per stream."""
        if not self.prompt_tokens:
            return self.graphs.around(self.model)
        # a graph has no place for the tokens that are left out
        return lambda texts, finish: self.model(self._pack(texts), finish)

    @cached_property
    def prompt_tokens(self) -> int:
        """Leading tokens of each text that pooling leaves out."""
        if self.model.pooling.include_prompt:
            return 0
        return count_prompt_tokens(self.tokenizer, self.job.prompt, self.job.max_length)

    def _pack(self, texts: Sequence[Sequence[int]]) -> PackedBatch:
        return pack(texts, self.model.device, self.prompt_tokens)

    def vectors(self, texts: list[list[int]], loop: BatchLoop) -> Tensor:
        """One vector for each list of token ids, in order."""
        encode, finish = self._encode, self.job.finish
        return loop.rows(
            list(map(len, texts)), lambda indices: encode([texts[i] for i in indices], finish)
        )

    def _joined(self, parts: list[list[list[int]]], loop: BatchLoop) -> Tensor:
        """Mean over the tokens of all windows of each text, then the steps after pooling."""
        model = self.model
        windows = [ids for part in parts for ids in part]
        lengths = list(map(len, windows))
        means = loop.rows(
            lengths, lambda indices: model.pooled(self._pack([windows[i] for i in indices]))
        )
        # the tokens that were pooled: a prompt that is left out stands in every window
        pooled_tokens = np.maximum(np.array(lengths) - self.prompt_tokens, 0)
        pooled = token_mean(means, pooled_tokens, list(map(len, parts)))
        vectors = model.finish(pooled, self.job.finish)
        for row, part in zip(vectors, parts, strict=True):
            if not any(part):
                row.zero_()  # a text without tokens has no mean: zeros, as in EmbeddingModel
        return vectors

    def _averaged(self, parts: list[list[list[int]]], loop: BatchLoop) -> Tensor:
        """The vectors of each text's windows, then their mean and L2."""
        vectors = self.vectors([ids for part in parts for ids in part], loop)
        return mean_of_windows(vectors, list(map(len, parts)))

    def _hidden(self, texts: list[list[int]], loop: BatchLoop) -> list[Tensor]:
        """The hidden states of each list of token ids, in order."""
        refuse_hooks(self.model)
        encoder = self.model.encoder
        states: list[Tensor] = [torch.empty(0)] * len(texts)

        def encode(indices: list[int]) -> Tensor:
            batch = pack([texts[i] for i in indices], encoder.device)
            return encoder.encode_packed(batch).to(encoder.dtype)

        lengths = list(map(len, texts))
        for indices, hidden in loop.each(lengths, encode):
            for i, rows in zip(
                indices, torch.split(hidden, [lengths[i] for i in indices]), strict=True
            ):
                states[i] = rows.clone()  # a view would keep the whole batch in memory
        return states
