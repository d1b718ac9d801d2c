"""Long texts -> a vector per chunk: each chunk alone, or "late", in the context of its text.

Late chunking encodes as much of a text in one pass as the model takes, and pools over the tokens of
each chunk. The special tokens and the prompt before a pass are pooled with its first chunk, those
after it with its last one: so a text of one chunk has the vector of `encode`.

Where in the flow: in place of `stream` and `texts`, for `Embedder.encode_chunks`.
Source: Günther et al. 2024, arXiv:2409.04701 (late chunking).
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nomicbert.arguments import as_whole
from nomicbert.modeling.packing import pack
from nomicbert.runtime.batch_loop import BatchLoop, Budget
from nomicbert.runtime.batches import text_windows
from nomicbert.runtime.encode_keywords import ChunkKeywords
from nomicbert.runtime.progress import Progress
from nomicbert.runtime.remarks import Remarks
from nomicbert.runtime.request import Request
from nomicbert.runtime.texts import Texts
from nomicbert.text.chunking import Chunked, chunked

# Tokens of a chunk, unless the caller says.
TOKENS = 256
CHUNK_KEYWORDS = frozenset(ChunkKeywords.__annotations__)


class Chunks(NamedTuple):
    """The n chunks of some texts, in order.

    Attributes:
        vectors: (n, dim) float32.
        texts: (n,) int64, index of the chunk's text.
        starts: (n,) int64, its first character there.
        ends: (n,) int64, the character behind its last one.
    """

    vectors: npt.NDArray[np.float32]
    texts: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Pass:
    """Token ids that are encoded together, and the chunks among them.

    Attributes:
        ids: with the special tokens and the prompt.
        spans: the ranges of `ids` that are pooled, one per chunk.
    """

    ids: list[int]
    spans: list[range]


def passes(text: Chunked, limit: int, skipped: int) -> Iterator[Pass]:
    """The passes of a text by late chunking: as few as hold all its chunks.

    Args:
        text: its chunks fit.
        limit: of tokens per pass.
        skipped: leading tokens that pooling leaves out.
    """
    head, room = len(text.head), limit - len(text.head) - len(text.tail)
    chunks, end = text.chunks, 0
    while end < len(chunks):
        begin, first = end, chunks[end].start
        end = bisect_right(chunks, first + room, begin, key=lambda chunk: chunk.stop)
        here = chunks[begin:end]
        ids = [*text.head, *text.ids[first : here[-1].stop], *text.tail]
        starts = [min(skipped, head), *(head + chunk.start - first for chunk in here[1:])]
        stops = [*(head + chunk.stop - first for chunk in here[:-1]), len(ids)]
        yield Pass(ids, [range(*span) for span in zip(starts, stops, strict=True)])


class ChunkEncoder:
    """Encodes the chunks of texts with one model."""

    def __init__(
        self, task: Texts, request: Request, tokens: int | None, overlap: int, late: bool | None
    ) -> None:
        """Take model, tokenizer and prompt from `task`; the others as in `Embedder.encode_chunks`.

        Raises: ValueError: chunks of `tokens` do not fit, the overlap is not smaller, or pooling is
            not by mean where late chunking is asked for. TypeError: not an integer.
        """
        by_mean = task.model.pooling.modes == ("mean",)
        if late and not by_mean:
            raise ValueError(
                "late chunks are means over tokens, and this checkpoint pools by "
                f"{task.model.pooling.mode}: leave late out, or give late=False"
            )
        self.task, self.late = task, by_mean if late is None else late
        self.request = request
        self.batch_tokens = request.options().batch_tokens or task.batch_tokens()
        (empty,) = chunked(task.tokenizer, [""], task.job.prompt, 1)
        room = task.max_length - len(empty.head) - len(empty.tail)
        if room < 1:
            raise ValueError(
                f"no token of a text fits into {task.max_length} tokens beside the prompt and the "
                "special tokens: raise max_length"
            )
        self.tokens = min(TOKENS, room) if tokens is None else as_whole("chunk_tokens", tokens)
        self.overlap = as_whole("chunk_overlap", overlap)
        if not 1 <= self.tokens <= room:
            raise ValueError(
                f"chunk_tokens must be 1 to {room}, not {tokens}: special tokens and the prompt "
                f"take the rest of {task.max_length}"
            )
        if not 0 <= overlap < self.tokens:
            raise ValueError(f"chunk_overlap must be 0 to {self.tokens - 1}, not {overlap}")

    def encode(self, texts: Sequence[str]) -> Chunks:
        """The chunks of all texts."""
        task, show = self.task, self.request.show_progress_bar
        width = self.request.width(task.model.pooling)
        vectors: list[Tensor] = []
        places: list[tuple[int, int, int]] = []
        count = 0
        with Remarks(task) as remarks, Progress(show, task.doing) as bar:
            for rows, found in self.windows(bar.watch(iter(texts)), bar):
                remarks.add(rows, len(found), 0)
                vectors.append(rows.cpu())
                for index, text in enumerate(found, count):
                    places += [(index, *place) for place in text.characters]
                count += len(found)
        table = np.array(places, np.int64).reshape(-1, 3)
        joined = torch.cat([torch.empty(0, width), *vectors])
        return Chunks(joined.numpy(), *(np.ascontiguousarray(column) for column in table.T))

    def windows(
        self, texts: Iterator[str], progress: Progress
    ) -> Iterator[tuple[Tensor, list[Chunked]]]:
        """Encode texts window by window.

        Args:
            texts: any number.
            progress: receives the tokens read and done.

        Yields: (n, dim) fp32 for the n chunks of consecutive texts, and these texts.
        """
        task = self.task
        loop = BatchLoop(task.device, Budget(self.batch_tokens), progress)
        for window in text_windows(task.read(texts)):
            found = chunked(
                task.tokenizer, window, task.job.prompt, self.tokens, self.overlap, task.max_length
            )
            progress.read([len(text.ids) for text in found])
            yield self._vectors(found, loop), found

    @torch.inference_mode()
    def _vectors(self, texts: list[Chunked], loop: BatchLoop) -> Tensor:
        """A row per chunk, in order."""
        task = self.task
        if not self.late:
            alone = [
                [*text.head, *text.ids[chunk.start : chunk.stop], *text.tail]
                for text in texts
                for chunk in text.chunks
            ]
            return task.vectors(alone, loop)
        found = [one for text in texts for one in passes(text, task.max_length, task.prompt_tokens)]
        first = np.cumsum([0, *(len(one.spans) for one in found)])
        lengths = [len(one.ids) for one in found]

        def encode(indices: list[int]) -> Tensor:
            batch = pack([found[i].ids for i in indices], task.device)
            return task.model.pooled_spans(batch, [found[i].spans for i in indices])

        pooled = torch.empty(0)
        for indices, rows in loop.each(lengths, encode):
            if not pooled.numel():
                pooled = rows.new_empty(int(first[-1]), rows.shape[1])
            own = np.concatenate([np.arange(first[i], first[i + 1]) for i in indices])
            pooled[torch.from_numpy(own).to(rows.device)] = rows
        vectors = task.model.finish(pooled, task.job.finish)
        for one, row in zip(found, first[:-1], strict=True):
            if not one.ids:
                vectors[row].zero_()  # a text without tokens has no mean: zeros, as in `encode`
        return vectors
