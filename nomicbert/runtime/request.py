"""What a call of `encode` asks for, and the form in which its vectors are handed over."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from nomicbert.arguments import as_whole
from nomicbert.runtime.stream import Job, Truncate
from nomicbert.vectors import quantization as formats
from nomicbert.vectors.pooling import Finish
from nomicbert.vectors.quantization import Precision

Window = Tensor | list[Tensor]
Devices = torch.device | str | Sequence[torch.device | str] | None
OutputValue = Literal["sentence_embedding", "token_embeddings"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """The keywords of `Embedder.encode`, which documents them."""

    prompt_name: str | None = None
    prompt: str | None = None
    matryoshka_dim: int | None = None
    truncate_dim: int | None = None
    normalize_embeddings: bool = False
    precision: Precision = "float32"
    ranges: np.ndarray | None = None
    convert_to_numpy: bool = True
    convert_to_tensor: bool = False
    output_value: OutputValue = "sentence_embedding"
    device: Devices = None
    batch_size: int | None = None
    batch_tokens: int | None = None
    max_length: int | None = None
    truncate: Truncate = "end"
    show_progress_bar: bool | None = None

    @property
    def wants_tokens(self) -> bool:
        """Whether hidden states are wanted instead of vectors."""
        return self.output_value == "token_embeddings"

    def check(self, pool_mode: str) -> None:
        """Refuse what cannot be, without a look at the texts.

        Args:
            pool_mode: how the checkpoint pools.

        Raises: ValueError: a value or a pair of values; the message names it.
        """
        for name, value, known in (
            ("output_value", self.output_value, get_args(OutputValue)),
            ("truncate", self.truncate, get_args(Truncate)),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, not {value!r}")
        for name in ("batch_tokens", "batch_size"):
            if (size := getattr(self, name)) is not None and as_whole(name, size) < 1:
                raise ValueError(f"{name} must be at least 1, not {size}")
        if self.truncate == "chunk" and pool_mode != "mean":
            raise ValueError(
                f"truncate='chunk' adds up tokens, which only mean pooling does: this checkpoint "
                f"pools by {pool_mode}"
            )
        if self.wants_tokens:
            for name, plain in (
                ("matryoshka_dim", None),
                ("truncate_dim", None),
                ("normalize_embeddings", False),
                ("precision", "float32"),
            ):
                if getattr(self, name) != plain:
                    raise ValueError(
                        f"{name} is for vectors: token_embeddings are hidden states as they are"
                    )
            if self.truncate == "chunk":
                raise ValueError("truncate='chunk' gives one vector, not token_embeddings")

    def job(self, prompt: str, max_length: int, finish: Finish, batch_tokens: int) -> Job:
        """What a Stream needs to know; the arguments are what this alone does not say."""
        return Job(
            prompt=prompt,
            prompt_is_chosen=self.prompt is not None,
            max_length=max_length,
            truncate=self.truncate,
            finish=finish,
            token_embeddings=self.wants_tokens,
            batch_tokens=self.batch_tokens or batch_tokens,
            batch_size=self.batch_size,
            to_host=not self.convert_to_tensor,
            show_progress_bar=self.show_progress_bar,
        )

    def gather(self, windows: Iterable[Window], count: int, width: int) -> Any:
        """All of a call's rows in the form asked for.

        Args:
            windows: rows in order, (n, width) fp32 or lists of hidden states.
            count: of all rows.
            width: of a vector.
        """
        ranges = formats.check(self.precision, self.ranges, width)
        if self.wants_tokens:
            return [rows for window in windows for rows in window]
        own = formats.needs_ranges(self.precision) and ranges is None
        rows = torch.empty(0, width)
        start = 0
        for window in windows:
            assert isinstance(window, Tensor)
            found = window if own else formats.convert(window, self.precision, ranges)
            if start == 0:
                place = found.device if self.convert_to_tensor else "cpu"
                rows = torch.empty(count, found.shape[1], dtype=found.dtype, device=place)
            rows[start : start + len(found)] = found
            start += len(found)
        if own and count:
            ranges = formats.ranges_of(rows, self.precision)
        if own or not count:
            rows = formats.convert(rows, self.precision, ranges)
        return self._hand_over(rows)

    def each(self, windows: Iterable[Window], width: int) -> Iterator[Any]:
        """The same rows one at a time, each as soon as its window is done; checks at once."""
        ranges = formats.check(self.precision, self.ranges, width)
        if formats.needs_ranges(self.precision) and ranges is None:
            raise ValueError(
                f"precision {self.precision!r} needs ranges in a stream: (2, {width}), smallest "
                "and largest of each column of some thousand float32 vectors"
            )
        return (row for window in windows for row in self._rows(window, ranges))

    def _rows(self, window: Window, ranges: Tensor | None) -> Iterator[Any]:
        if not isinstance(window, Tensor):
            yield from window
            return
        rows = formats.convert(window, self.precision, ranges)
        for row in self._hand_over(rows if self.convert_to_tensor else rows.cpu()):
            # a view would keep the whole window in memory
            yield row.clone() if isinstance(row, Tensor) else row.copy()

    def _hand_over(self, rows: Tensor) -> Any:
        if self.convert_to_tensor:
            return rows
        return rows.numpy() if self.convert_to_numpy else list(rows)
