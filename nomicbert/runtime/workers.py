"""A stream of texts on several devices of one machine: a process each, results in order.

Where in the flow: the caller's side of `worker`. Here texts are checked and cut into chunks, and
what a call says once (progress, warnings) is said; `dispatch` keeps the processes.
"""

import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import chain
from operator import length_hint
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nomicbert.runtime.batches import WINDOW_TEXTS, checked, text_windows
from nomicbert.runtime.dispatch import Chunk, Dispatcher
from nomicbert.runtime.progress import Progress, Unread
from nomicbert.runtime.stream import Stream
from nomicbert.runtime.worker import work
from nomicbert.text.tokenizer import LETTERS_A_TOKEN

# Chunks for each device at least, where there is enough to do.
SHARES = 4
# Letters of a chunk: less is not worth a message; more takes a CPU so long that the others wait
# for it at the end.
LEAST_LETTERS = 1 << 12
CPU_LETTERS = 1 << 15


class Workers(Stream):
    """A Stream that several processes run, one for each device."""

    def __init__(
        self, devices: Sequence[torch.device], batch_tokens: int | None, *parts: Any
    ) -> None:
        """Nothing is started before there are texts.

        Args:
            devices: one for each process.
            batch_tokens: tokens of a batch at most; None lets each process see what its device can.
            parts: of a Stream.
        """
        super().__init__(*parts)
        if os.name != "posix":
            raise ValueError("a list of devices needs Linux or macOS: give one device")
        self.devices = devices
        self.batch_tokens = batch_tokens

    def run(self, inputs: Iterator[Any]) -> Iterator[Tensor | list[Tensor]]:
        """As Stream.run, but on the CPU, and with more texts read ahead.

        Raises: WorkerError: all processes have died, or a chunk of texts kills them.
        """
        job = self.job
        unread = Unread(inputs)
        texts = checked(unread)
        if not job.prompt_is_chosen:
            texts = self.prompts.watch(job.prompt, texts)
        useful = None if job.truncate == "chunk" else job.max_length * LETTERS_A_TOKEN
        # what a call says, it says once
        quiet = replace(
            job,
            prompt_is_chosen=True,
            show_progress_bar=False,
            to_host=True,
            batch_tokens=self.batch_tokens or 0,
        )
        flowing = self._flowing(inputs)
        chunks = self._chunks(text_windows(texts, useful), useful, whole=flowing)
        first = next(chunks, None)
        if first is None:
            return
        threads = max(torch.get_num_threads() // len(self.devices), 1)
        names = list(map(str, self.devices))
        with (
            Progress(job.show_progress_bar, unread) as progress,
            shared((self.model, self.tokenizer, self.pooling, self.prompts)) as path,
            closing(
                Dispatcher(
                    names, work, path, threads, quiet, flowing, at_a_time=4 if flowing else 2
                ).run(chain([first], chunks))
            ) as results,
        ):
            try:
                for rows, content in results:
                    self._read += len(rows.lengths)
                    self._cut += rows.cut
                    unread.away -= len(rows.lengths)
                    progress.read(rows.lengths)
                    progress.done(sum(rows.lengths))
                    yield rows.window(content)
            except GeneratorExit:
                self._tell()
                raise
        self._tell()

    def _flowing(self, inputs: Iterator[Any]) -> bool:
        """Whether chunks are whole windows, and one follows the other in a process.

        So reading, tokenising and computing overlap, as on one device. A CPU has nothing to gain
        from it, and of few texts every device shall have its share.
        """
        left = length_hint(inputs, -1)
        few = 0 <= left < SHARES * len(self.devices) * WINDOW_TEXTS
        return not few and all(device.type != "cpu" for device in self.devices)

    def _chunks(
        self, windows: Iterable[list[str]], useful: int | None, whole: bool
    ) -> Iterator[Chunk]:
        """Windows, or pieces of them, with their numbers."""
        number = start = 0
        for window in windows:
            for texts in [window] if whole else self._pieces(window, useful):
                yield Chunk(number, start, texts)
                number += 1
                start += len(texts)

    def _pieces(self, window: list[str], useful: int | None) -> Iterator[list[str]]:
        """Neighbouring texts of a window, in lists of about as many letters that count."""
        sizes = [len(text) if useful is None else min(len(text), useful) for text in window]
        limit = sum(sizes) // (SHARES * len(self.devices))
        if any(device.type == "cpu" for device in self.devices):
            limit = min(limit, CPU_LETTERS)
        limit = max(limit, LEAST_LETTERS)
        piece: list[str] = []
        letters = 0
        for text, size in zip(window, sizes, strict=True):
            piece.append(text)
            letters += size
            if letters >= limit:
                yield piece
                piece, letters = [], 0
        if piece:
            yield piece


@contextmanager
def shared(parts: tuple[Any, ...]) -> Iterator[str]:
    """The parts of an Embedder in a file that other processes can map: its path.

    On Linux it is in memory and has no name that could outlive this process.
    """
    if hasattr(os, "memfd_create"):
        with open(os.memfd_create("nomicbert"), "wb") as file:
            torch.save(parts, file)
            file.flush()
            yield f"/proc/{os.getpid()}/fd/{file.fileno()}"
    else:
        with tempfile.TemporaryDirectory(prefix="nomicbert-") as folder:
            path = Path(folder, "parts.pt")
            torch.save(parts, path)
            yield str(path)
