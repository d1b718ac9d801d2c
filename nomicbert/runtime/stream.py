"""A stream of texts -> a stream of vectors, window by window, in the order of the texts.

Where in the flow: `Embedder` says what is wanted (a Job); here a window of texts is tokenised,
sorted and cut into batches, each batch goes through encoder and pooling, and the window's rows come
back in order. Memory depends on the window, not on the stream. On a GPU the next window is
tokenised meanwhile, and its kernels are queued before the vectors of this one have arrived.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nomicbert.errors import TextError
from nomicbert.modeling.model import NomicBert
from nomicbert.modeling.packing import pack
from nomicbert.runtime.allocator import keep_freed_memory
from nomicbert.runtime.batches import checked, halves, text_windows, token_batches
from nomicbert.runtime.graphs import Graphs
from nomicbert.runtime.pipeline import in_turn, landing, one_ahead, staying
from nomicbert.runtime.progress import Progress, Unread
from nomicbert.text.prompts import Prompts
from nomicbert.text.tokenizer import LETTERS_A_TOKEN, Tokenizer
from nomicbert.user_warnings import TruncationWarning, warn
from nomicbert.vectors.pooling import Finish, Pooling
from nomicbert_kernels.tensors import to_device

logger = logging.getLogger(__name__)

Truncate = Literal["end", "error", "chunk"]
Rows = Tensor | list[Tensor]


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
        to_host: vectors are wanted in the host's memory.
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
    to_host: bool
    show_progress_bar: bool | None


class Tokenised(NamedTuple):
    """A window of texts as token ids.

    Attributes:
        texts: of each text its windows of `max_length` with truncate "chunk", else one.
        cut: indices of the texts that were cut.
    """

    texts: list[list[list[int]]]
    cut: list[int]


class Stream:
    """The way of texts through tokenizer, encoder and pooling, for one job."""

    def __init__(
        self,
        model: NomicBert,
        tokenizer: Tokenizer,
        pooling: Pooling,
        prompts: Prompts,
        job: Job,
        graphs: Graphs,
    ) -> None:
        """The parts of a checkpoint, what is wanted of them, and the graphs recorded so far."""
        self.model = model
        self.tokenizer = tokenizer
        self.pooling = pooling
        self.prompts = prompts
        self.job = job
        self.graphs = graphs
        self._batch_tokens = job.batch_tokens
        self._read = self._cut = 0

    def run(self, inputs: Iterator[Any]) -> Iterator[Rows]:
        """Embed window by window.

        Args:
            inputs: texts, without the prompt. On a GPU they are read two windows further than what
                has been yielded: one is tokenised while the kernels of the other run.

        Yields: a window's vectors (n, dim) fp32 in order, on the host or on the model's device as
            the job says; or, for token embeddings, as many (tokens, hidden_size) in the model's
            dtype, on its device.

        Raises:
            TypeError: an input that is no str.
            TextError: one that is no valid Unicode; one that is too long, with truncate "error".
            torch.OutOfMemoryError: a single text is too much for the GPU.
        """
        job, device = self.job, self.model.device
        keep_freed_memory(device)
        unread = Unread(inputs)
        texts = checked(unread)
        if not job.prompt_is_chosen:
            texts = self.prompts.watch(job.prompt, texts)
        # what lies beyond the limit is never tokenised, unless every window of it is wanted
        useful = None if job.truncate == "chunk" else job.max_length * LETTERS_A_TOKEN
        windows = text_windows(texts, useful)
        ahead, numbers = overlaps(device), count()
        turns = one_ahead if ahead else in_turn
        with Progress(job.show_progress_bar, unread) as progress, ExitStack() as stack:
            thread: ThreadPoolExecutor | None = None

            def tokenise(window: list[str]) -> Callable[[], Tokenised]:
                nonlocal thread
                work = partial(self._tokenise, window)
                # nothing is computed yet beside the first one: it needs no thread
                if not ahead or next(numbers) == 0:
                    return work
                thread = thread or stack.enter_context(ThreadPoolExecutor(1, "tokenizer"))
                return thread.submit(work).result

            def embed(window: Tokenised) -> Callable[[], Rows]:
                unread.away -= len(window.texts)
                return self._embed(window, progress)

            try:
                yield from turns(turns(windows, tokenise), embed)
            except GeneratorExit:
                # as zip leaves it, when its other half ends
                self._tell()
                raise
        self._tell()

    def _tokenise(self, window: list[str]) -> Tokenised:
        job = self.job
        if job.truncate == "chunk":
            return Tokenised(self.tokenizer.encode_windows(window, job.prompt, job.max_length), [])
        ids, cut = self.tokenizer.encode([job.prompt + text for text in window], job.max_length)
        return Tokenised([[text] for text in ids], cut)

    def _embed(self, window: Tokenised, progress: Progress) -> Callable[[], Rows]:
        """Queue all work on a window; what is returned waits for its rows."""
        job = self.job
        if window.cut and job.truncate == "error":
            raise TextError(
                self._read + window.cut[0],
                f"is longer than {job.max_length} tokens: shorten it, or choose "
                "truncate 'end' or 'chunk'",
            )
        self._read += len(window.texts)
        self._cut += len(window.cut)
        progress.read([sum(map(len, parts)) for parts in window.texts])
        if job.truncate == "chunk":
            rows = self._joined(window.texts, progress)
        else:
            texts = [ids for parts in window.texts for ids in parts]
            if job.token_embeddings:
                states = self._hidden(texts, progress)
                return staying(states, self.model.device)
            rows = self._vectors(texts, progress, self._vectors_of)
        return landing(rows) if job.to_host else staying(rows, self.model.device)

    def _tell(self) -> None:
        """Warn if texts were cut."""
        if self._cut:
            warn(
                f"{self._cut} of {self._read} texts were longer than {self.job.max_length} tokens "
                "and were cut there",
                TruncationWarning,
            )

    def _batches(
        self,
        texts: list[list[int]],
        progress: Progress,
        encode: Callable[[list[list[int]]], Tensor],
    ) -> Iterator[tuple[list[int], Tensor]]:
        """(indices of texts, what `encode` makes of them), longest first.

        A batch that a GPU has no memory for is halved, and so are those after it.
        """
        lengths = list(map(len, texts))
        waiting = deque(token_batches(lengths, self._batch_tokens, self.job.batch_size))
        while waiting:
            indices = waiting.popleft()
            tokens = sum(lengths[i] for i in indices)
            try:
                found = encode([texts[i] for i in indices])
            except torch.OutOfMemoryError:
                if len(indices) == 1:
                    raise
                self._batch_tokens = max(1, min(self._batch_tokens, tokens) // 2)
                logger.warning(
                    "a batch of %d tokens does not fit into the memory of %s: %d at most in the "
                    "rest of this call; give it batch_tokens",
                    tokens,
                    self.model.device,
                    self._batch_tokens,
                )
                parts = [part for batch in (indices, *waiting) for part in halves(batch, lengths)]
                waiting = deque(parts)
                continue
            yield indices, found
            progress.done(tokens)

    @torch.inference_mode()
    def _vectors(
        self,
        texts: list[list[int]],
        progress: Progress,
        encode: Callable[[list[list[int]]], Tensor],
    ) -> Tensor:
        """One vector for each list of token ids, in order."""
        rows = torch.empty(0)
        for indices, found in self._batches(texts, progress, encode):
            if not rows.numel():
                rows = found.new_empty(len(texts), found.shape[1])
            rows.index_copy_(0, to_device(np.array(indices), found.device), found)
        return rows

    def _vectors_of(self, texts: list[list[int]]) -> Tensor:
        return self.graphs(self.model, self.pooling, texts, self.job.finish)

    def _pooled(self, texts: list[list[int]]) -> Tensor:
        model = self.model
        return self.pooling.pool(model, model.context(pack(texts, model.device)))

    @torch.inference_mode()
    def _joined(self, parts: list[list[list[int]]], progress: Progress) -> Tensor:
        """Mean over the tokens of all windows of each text, then what follows pooling."""
        windows = [ids for part in parts for ids in part]
        means = self._vectors(windows, progress, self._pooled)
        counts = np.array(list(map(len, parts)))
        tokens = np.array([sum(map(len, part)) for part in parts]).repeat(counts)
        # a text of one window keeps its bits: its share is 1
        shares = np.array(list(map(len, windows)), np.float32) / np.maximum(tokens, 1)
        weighted = means * to_device(shares.astype(np.float32), means.device)[:, None]
        # text by text, so that a sum does not hang on the texts beside it
        where = to_device(counts, means.device)
        pooled = torch.segment_reduce(weighted, "sum", lengths=where, axis=0)
        vectors = self.pooling.finish(self.model.ops, pooled, self.job.finish)
        for row, part in zip(vectors, parts, strict=True):
            if not any(part):
                row.zero_()  # a text without tokens has no mean: zeros, as in Pooling
        return vectors

    @torch.inference_mode()
    def _hidden(self, texts: list[list[int]], progress: Progress) -> list[Tensor]:
        """The hidden states of each list of token ids, in order."""
        model = self.model
        states: list[Tensor] = [torch.empty(0)] * len(texts)

        def encode(ids: list[list[int]]) -> Tensor:
            return model.encode_packed(pack(ids, model.device)).to(model.dtype)

        for indices, hidden in self._batches(texts, progress, encode):
            lengths = [len(texts[i]) for i in indices]
            for i, rows in zip(indices, torch.split(hidden, lengths), strict=True):
                states[i] = rows.clone()  # a view would keep the whole batch in memory
        return states


def overlaps(device: torch.device) -> bool:
    """Whether work on a device leaves the host free for other work."""
    return device.type == "cuda"
