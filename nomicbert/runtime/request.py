"""The arguments of a call of `encode`, and the conversion of its vectors to the requested form."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from nomicbert.runtime.encode_keywords import CallKeywords, Devices, OutputValue, TaskName
from nomicbert.runtime.encode_types import Vectors
from nomicbert.runtime.features import Processing, call_length
from nomicbert.runtime.pool import WorkerPool
from nomicbert.runtime.stream import Options, Window
from nomicbert.runtime.texts import OVERLAPS, Job, Truncate
from nomicbert.vectors import quantization as formats
from nomicbert.vectors.pooling import Finish, Pooling
from nomicbert.vectors.quantization import Precision


def prompted(keywords: CallKeywords, name: str | None, task: TaskName, inputs: Any) -> CallKeywords:
    """The keywords of a call of `encode`, with this prompt where they have none.

    Without a name that is the empty one, and not the default: as in sentence-transformers.

    Args:
        keywords: of the call of `encode_query` or `encode_document`.
        name: of the checkpoint's prompt for this task, or None.
        task: of the call.
        inputs: its texts, if they were not given as `sentences`, the old name.

    Raises: ValueError: the call has another task among its keywords.
    """
    if keywords.get("task") not in (None, task):
        raise ValueError(
            f"encode_{task} is for task={task!r}, not {keywords['task']!r}: leave task out, or "
            "call encode"
        )
    given: Any = {"inputs": inputs, **keywords, "task": task}
    if inputs is None and "sentences" in given:
        given["inputs"] = given.pop("sentences")
    given.setdefault("prompt_name", None)
    given.setdefault("prompt", None)
    if given["prompt_name"] is None and given["prompt"] is None:
        given |= {"prompt_name": name, "prompt": "" if name is None else None}
    found: CallKeywords = given
    return found


@dataclass(frozen=True, kw_only=True)
class Request:
    """The keywords of `Embedder.encode`, which documents them."""

    prompt_name: str | None = None
    prompt: str | None = None
    matryoshka_dim: int | None = None
    truncate_dim: int | None = None
    normalize_embeddings: bool = False
    precision: Precision | None = "float32"
    ranges: np.ndarray | None = None
    convert_to_numpy: bool = True
    convert_to_tensor: bool = False
    output_value: OutputValue | None = "sentence_embedding"
    device: Devices = None
    batch_size: int | None = None
    batch_tokens: int | None = None
    max_length: int | None = None
    truncate: Truncate = "end"
    show_progress_bar: bool | None = None
    pool: WorkerPool | None = None
    chunk_size: int | None = None
    task: TaskName | None = None
    processing_kwargs: Processing | None = None

    def __post_init__(self) -> None:
        """Take the length from processing_kwargs, sentence-transformers' place for it.

        Raises: TypeError, ValueError: an entry of processing_kwargs; a length given twice.
        """
        length = call_length(self.max_length, self.processing_kwargs)
        object.__setattr__(self, "max_length", length)

    @classmethod
    def among(cls, given: Mapping[str, Any]) -> "Request":
        """Build a request from the locals() of a function with all these keywords."""
        return cls(**{field.name: given[field.name] for field in fields(cls)})

    def with_default(self, truncate_dim: int | None) -> "Request":
        """The request with this width, if it gives none and vectors are wanted."""
        given = self.truncate_dim is not None or self.matryoshka_dim is not None
        if truncate_dim is None or given or self.wants_tokens:
            return self
        return replace(self, truncate_dim=truncate_dim)

    @property
    def form(self) -> Precision:
        """The precision of vectors; None is sentence-transformers' word for float32."""
        return self.precision or "float32"

    @property
    def wants_tokens(self) -> bool:
        """Whether to return hidden states instead of vectors."""
        return self.output_value == "token_embeddings"

    @property
    def wants_all(self) -> bool:
        """Whether to return a dictionary per text, with hidden states and vector."""
        return self.output_value is None

    def for_vectors(self) -> "Request":
        """The same request for vectors only, as a tensor."""
        return replace(self, output_value="sentence_embedding", convert_to_tensor=True)

    def for_tokens(self) -> "Request":
        """The same request for hidden states only."""
        return replace(
            self,
            output_value="token_embeddings",
            matryoshka_dim=None,
            truncate_dim=None,
            normalize_embeddings=False,
        )

    @property
    def finish(self) -> Finish:
        """The steps after pooling."""
        # a mean of windows is one of unit vectors
        normalize = self.normalize_embeddings or self.truncate == "mean"
        return Finish(self.matryoshka_dim, self.truncate_dim, normalize)

    def width(self, pooling: Pooling) -> int:
        """Width of a vector."""
        return self.matryoshka_dim or self.truncate_dim or pooling.embedding_dimension

    def check(self, pooling: Pooling) -> None:
        """Refuse invalid arguments; the texts are not looked at.

        Args:
            pooling: of the checkpoint.

        Raises: ValueError, TypeError: invalid value or combination; the message names it.
        """
        for name, value, known in (
            ("output_value", self.output_value, (*get_args(OutputValue), None)),
            ("truncate", self.truncate, get_args(Truncate)),
            ("task", self.task, (*get_args(TaskName), None)),
        ):
            if value not in known:
                known_names = ", ".join(map(str, known))
                raise ValueError(f"{name} must be one of {known_names}, not {value!r}")
        if self.truncate == "chunk" and pooling.modes != ("mean",):
            raise ValueError(
                f"truncate='chunk' adds up tokens, which only mean pooling does: this checkpoint "
                f"pools by {pooling.mode}"
            )
        for_vectors = {
            "matryoshka_dim": self.matryoshka_dim is not None,
            "truncate_dim": self.truncate_dim is not None,
            "normalize_embeddings": self.normalize_embeddings,
            "precision": self.form != "float32",
        }
        if self.wants_tokens and any(for_vectors.values()):
            name = next(name for name, asked in for_vectors.items() if asked)
            raise ValueError(
                f"{name} is for vectors: token_embeddings are hidden states as they are"
            )
        if self.wants_all and self.form != "float32":
            raise ValueError(
                "precision is for vectors: output_value None gives outputs as they are"
            )
        if (self.wants_tokens or self.wants_all) and self.truncate in OVERLAPS:
            raise ValueError(f"truncate={self.truncate!r} gives one vector, not token_embeddings")
        pooling.check(self.finish)

    def job(self, prompt: str, max_length: int) -> Job:
        """The work per text; prompt and limit come from the checkpoint."""
        return Job(
            prompt=prompt,
            prompt_is_chosen=self.prompt is not None,
            max_length=max_length,
            truncate=self.truncate,
            finish=self.finish,
            token_embeddings=self.wants_tokens,
        )

    def options(self) -> Options:
        """The settings of the stream.

        Raises: TypeError, ValueError: invalid batch size.
        """
        return Options(
            batch_tokens=self.batch_tokens,
            batch_size=self.batch_size,
            to_host=not self.convert_to_tensor,
            show_progress_bar=self.show_progress_bar,
            chunk_size=self.chunk_size,
        )

    def gather(
        self, windows: Iterable[Window], count: int, width: int
    ) -> Vectors | Tensor | list[Tensor]:
        """Collect all rows of a call in the requested form.

        Args:
            windows: in order, with rows (n, width) fp32 or lists of hidden states.
            count: number of rows.
            width: of a vector.
        """
        ranges = formats.check(self.form, self.ranges, width)
        if self.wants_tokens:
            return [rows for window in windows for rows in window.rows]
        own = formats.needs_ranges(self.form) and ranges is None
        rows = torch.empty(0, width)
        start = 0
        for window in windows:
            assert isinstance(window.rows, Tensor)
            found = window.rows if own else formats.convert(window.rows, self.form, ranges)
            if start == 0:
                place = found.device if self.convert_to_tensor else "cpu"
                rows = torch.empty(count, found.shape[1], dtype=found.dtype, device=place)
            rows[start : start + len(found)] = found
            start += len(found)
        if own and count:
            ranges = formats.ranges_of(rows, self.form)
        if own or not count:
            rows = formats.convert(rows, self.form, ranges)
        return self._hand_over(rows)

    def each(self, windows: Iterable[Window], width: int) -> Iterator[Vectors | Tensor]:
        """Yield the rows one by one, window by window; arguments are checked at once."""
        ranges = self.fixed_ranges(width)
        return (row for window in windows for row in self._rows(window, ranges))

    def fixed_ranges(self, width: int) -> Tensor | None:
        """The ranges (2, width) for int8 and uint8 in a stream; None for other precisions.

        Raises: ValueError, TypeError: invalid, missing, or not used by this precision.
        """
        ranges = formats.check(self.form, self.ranges, width)
        if formats.needs_ranges(self.form) and ranges is None:
            raise ValueError(
                f"precision {self.form!r} needs ranges in a stream: an array (2, {width}), "
                "minimum and maximum per column of some thousand float32 vectors"
            )
        return ranges

    def _rows(self, window: Window, ranges: Tensor | None) -> Iterator[Vectors | Tensor]:
        if not isinstance(window.rows, Tensor):
            yield from window.rows
            return
        rows = formats.convert(window.rows, self.form, ranges)
        for row in self._hand_over(rows if self.convert_to_tensor else rows.cpu()):
            # a view would keep the whole window in memory
            yield row.clone() if isinstance(row, Tensor) else row.copy()

    def _hand_over(self, rows: Tensor) -> Vectors | Tensor | list[Tensor]:
        if self.convert_to_tensor:
            return rows
        if not self.convert_to_numpy:
            return list(rows)
        array: Vectors = rows.numpy()
        return array
