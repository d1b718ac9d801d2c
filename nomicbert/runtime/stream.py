"""A stream of texts -> a stream of vectors, window by window, in the order of the texts.

Where in the flow: `Embedder` says what is wanted (a Job); here a window of texts is tokenised,
sorted and cut into batches, each batch goes through encoder and pooling, and the window's rows come
back in order. Memory depends on the window, not on the stream.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from nomicbert.errors import TextError
from nomicbert.model import NomicBert
from nomicbert.notices import TruncationWarning, warn
from nomicbert.packing import PackedBatch, pack
from nomicbert.pooling import Finish, Pooling
from nomicbert.prompts import Prompts
from nomicbert.runtime.batches import checked, text_windows, token_batches
from nomicbert.runtime.memory import keep_freed_memory
from nomicbert.runtime.progress import Progress
from nomicbert.tokenizer import LETTERS_A_TOKEN, Tokenizer

Truncate = Literal["end", "error", "chunk"]


@dataclass(frozen=True)
class Job:
    """What a call wants.

    Attributes:
        prompt: stands before every text.
        prompt_is_chosen: a prompt of the caller's own, be it empty, needs no reminder.
        max_length: tokens of a text, or of a window of it, at most.
        truncate: what becomes of longer texts.
        finish: what becomes of the pooled vectors.
        token_embeddings: hidden states of every token instead of one vector a text.
        batch_tokens: tokens of a batch at most.
        batch_size: texts of a batch at most, or None.
        show_progress_bar: None shows one on a terminal when the work takes long.
    """

    prompt: str
    prompt_is_chosen: bool
    max_length: int
    truncate: Truncate
    finish: Finish
    token_embeddings: bool
    batch_tokens: int
    batch_size: int | None
    show_progress_bar: bool | None


class Stream:
    """The way of texts through tokenizer, encoder and pooling, for one job."""

    def __init__(
        self,
        model: NomicBert,
        tokenizer: Tokenizer,
        pooling: Pooling,
        prompts: Prompts,
        job: Job,
    ) -> None:
        """The parts of a checkpoint, and what is wanted of them."""
        self.model = model
        self.tokenizer = tokenizer
        self.pooling = pooling
        self.prompts = prompts
        self.job = job

    def run(self, inputs: Iterator[Any]) -> Iterator[Tensor | list[Tensor]]:
        """Embed window by window.

        Args:
            inputs: texts, without the prompt.

        Yields: a window's vectors (n, dim) fp32 in order; or, for token embeddings, as many
            (tokens, hidden_size) in the model's dtype; on the model's device.

        Raises:
            TypeError: an input that is no str.
            TextError: one that is no valid Unicode; one that is too long, with truncate "error".
        """
        job, read, cut = self.job, 0, 0
        keep_freed_memory(self.model.device)
        texts = checked(inputs)
        if not job.prompt_is_chosen:
            texts = self.prompts.watch(job.prompt, texts)
        # what lies beyond the limit is never tokenised, unless every window of it is wanted
        useful = None if job.truncate == "chunk" else job.max_length * LETTERS_A_TOKEN
        with Progress(job.show_progress_bar, inputs) as progress:
            try:
                for window in text_windows(texts, useful):
                    if job.truncate == "chunk":
                        parts = self.tokenizer.encode_windows(window, job.prompt, job.max_length)
                        progress.read([sum(map(len, part)) for part in parts])
                        yield self._joined(parts, progress)
                        continue
                    prompted = [job.prompt + text for text in window]
                    ids, cut_here = self.tokenizer.encode(prompted, job.max_length)
                    if cut_here and job.truncate == "error":
                        raise TextError(
                            read + cut_here[0],
                            f"is longer than {job.max_length} tokens: shorten it, or choose "
                            "truncate 'end' or 'chunk'",
                        )
                    read += len(window)
                    cut += len(cut_here)
                    progress.read(list(map(len, ids)))
                    if job.token_embeddings:
                        yield self._hidden(ids, progress)
                    else:
                        yield self._vectors(ids, progress, self._embed)
            except GeneratorExit:
                # as zip leaves it, when its other half ends
                self._tell(cut, read)
                raise
        self._tell(cut, read)

    def _tell(self, cut: int, read: int) -> None:
        """Warn if texts were cut."""
        if cut:
            warn(
                f"{cut} of {read} texts were longer than {self.job.max_length} tokens and were cut "
                "there",
                TruncationWarning,
            )

    def _batches(
        self, texts: list[list[int]], progress: Progress
    ) -> Iterator[tuple[list[int], PackedBatch]]:
        """(indices of texts, the texts packed), longest first."""
        job = self.job
        for indices in token_batches(list(map(len, texts)), job.batch_tokens, job.batch_size):
            batch = pack([texts[i] for i in indices], self.model.device)
            yield indices, batch
            progress.done(sum(batch.lengths))

    @torch.inference_mode()
    def _vectors(
        self,
        texts: list[list[int]],
        progress: Progress,
        encode: Callable[[PackedBatch], Tensor],
    ) -> Tensor:
        """One vector for each list of token ids, in order."""
        rows = torch.empty(0)
        for indices, batch in self._batches(texts, progress):
            found = encode(batch)
            if not rows.numel():
                rows = found.new_empty(len(texts), found.shape[1])
            rows[indices] = found
        return rows

    def _embed(self, batch: PackedBatch) -> Tensor:
        vectors: Tensor = self.pooling(self.model, batch, self.job.finish)
        return vectors

    def _pool(self, batch: PackedBatch) -> Tensor:
        return self.pooling.pool(self.model, batch)

    @torch.inference_mode()
    def _joined(self, parts: list[list[list[int]]], progress: Progress) -> Tensor:
        """Mean over the tokens of all windows of each text, then what follows pooling."""
        means = self._vectors([ids for part in parts for ids in part], progress, self._pool)
        pooled = means.new_zeros(len(parts), means.shape[1])
        start = 0
        for row, part in zip(pooled, parts, strict=True):
            lengths = torch.tensor([len(ids) for ids in part], dtype=means.dtype)
            # a text of one window keeps its bits: its share is 1
            shares = (lengths / lengths.sum()).to(means.device)
            row.copy_((means[start : start + len(part)] * shares[:, None]).sum(0))
            start += len(part)
        vectors = self.pooling.finish(self.model.ops, pooled, self.job.finish)
        for row, part in zip(vectors, parts, strict=True):
            if not any(part):
                row.zero_()  # a text without tokens has no mean: zeros, as in Pooling
        return vectors

    @torch.inference_mode()
    def _hidden(self, texts: list[list[int]], progress: Progress) -> list[Tensor]:
        """The hidden states of each list of token ids, in order."""
        states: list[Tensor] = [torch.empty(0)] * len(texts)
        for indices, batch in self._batches(texts, progress):
            hidden = self.model.encode_packed(batch).to(self.model.dtype)
            for i, rows in zip(indices, torch.split(hidden, list(batch.lengths)), strict=True):
                states[i] = rows.clone()  # a view would keep the whole batch in memory
        return states
