"""Arrow tables of texts -> the same tables with a column of vectors.

Where in the flow: what a worker of Ray, Spark or Daft calls with each block. Importing it needs
pyarrow; Ray is asked for the resources of this process if something else has imported it.
"""

import os
import reprlib
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypedDict, cast, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from nomicbert.arguments import as_whole, refuse_unknown
from nomicbert.embedder import Embedder
from nomicbert.errors import TextError
from nomicbert.loading.pretrained import EmbedderKeywords
from nomicbert.modeling.model import NomicBert
from nomicbert.runtime.texts import Truncate
from nomicbert.vectors import quantization
from nomicbert.vectors.quantization import Precision

if TYPE_CHECKING:
    from typing_extensions import Unpack

OnNull = Literal["error", "empty", "null"]


class _EncodeKeywords(TypedDict, total=False):
    prompt_name: str | None
    prompt: str | None
    matryoshka_dim: int | None
    truncate_dim: int | None
    normalize_embeddings: bool
    precision: Precision
    ranges: npt.NDArray[np.float32] | npt.NDArray[np.float64] | None
    batch_size: int | None
    batch_tokens: int | None
    max_length: int | None
    truncate: Truncate


class BatchKeywords(EmbedderKeywords, _EncodeKeywords, total=False):
    """Keywords of `Embedder` and of `Embedder.encode`; `device` is where the model is loaded."""


class EmbedBatch:
    """Adds a column of vectors to an Arrow table: for `Dataset.map_batches`, or without Ray.

    The bits of a vector are those of `Embedder.encode` with the same keywords and threads, in
    blocks of any size.

    Attributes:
        embedder: computes the vectors.
        column: of the texts.
        output: of the vectors.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        column: str = "text",
        output: str = "embedding",
        threads: int | None = None,
        on_null: OnNull = "error",
        **keywords: "Unpack[BatchKeywords]",
    ) -> None:
        """Load the model; Ray does so once per actor.

        Args:
            model: a local folder, which each machine has, or a repository of the hub.
            column: the texts: strings, also as a dictionary.
            output: the new column: lists of the dtype of `precision`, of fixed size unless on_null
                is "null": pyarrow before 26 cannot read nulls among those from Parquet.
            threads: of torch and of the tokenizer; default: the CPUs that Ray has assigned, or
                torch's own number outside of Ray.
            on_null: of a null text: "error", or embed an "empty" text, or the vector is "null" too.
            **keywords: those of `Embedder` and of `Embedder.encode`. Without `device`, an actor
                with a GPU uses it. Precisions int8 and uint8 need `ranges`: a block's own would
                differ from block to block.

        Raises: TypeError, ValueError: a keyword or value that cannot be. Errors of `Embedder`.
        """
        load, self._encode = divide(keywords, type(self))
        self.column, self.output = column, output
        self.on_null = known_policy(on_null)
        assigned = _assigned()
        if threads is None:
            threads = int(assigned.get("CPU", 0)) or None
        if threads is not None:
            if as_whole("threads", threads) < 1:
                raise ValueError(f"threads must be at least 1, not {threads}")
            torch.set_num_threads(threads)
            os.environ.setdefault("RAYON_NUM_THREADS", str(threads))  # threads of the tokenizer
        if assigned.get("GPU") and load.get("device") is None and load.get("device_map") is None:
            load["device"] = "cuda"  # Ray shows an actor its own GPUs only
        self.embedder = Embedder(model, **load)
        self.embedder.encode([], **self._encode)  # checks the keywords against the checkpoint

    def __call__(self, table: pa.Table) -> pa.Table:
        """The table with the vectors appended; it has any number of rows, none included.

        Raises: ValueError: no such column, one that holds no strings, a column that has the
            output's name, a null with on_null "error", a text that is too long with truncate
            "error"; the message names the row, from 0 in this table, and its other fields.
        """
        check_columns(table.schema, self.column, self.output)
        column = table[self.column]
        missing = column.is_null()
        if column.null_count and self.on_null == "error":
            row = missing.to_pylist().index(True)
            raise ValueError(
                f"{self._where(table, row)} is null: give on_null='empty' or 'null', or drop "
                f"such rows first"
            )
        texts = ["" if text is None else text for text in column.to_pylist()]
        try:
            vectors = self.embedder.encode(texts, show_progress_bar=False, **self._encode)
        except TextError as error:
            raise ValueError(f"{self._where(table, error.index)} {error.problem}") from error
        width = vectors.shape[1]
        if self.on_null == "null":
            null = np.asarray(missing)
            ends = np.cumsum(~null * width, dtype=np.int32)
            offsets = np.concatenate([np.zeros(1, np.int32), ends])
            flat = pa.array(vectors[~null].reshape(-1))
            rows = pa.ListArray.from_arrays(offsets, flat, mask=pa.array(null))
        else:
            rows = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), width)
        return table.append_column(self.output, rows)

    def _where(self, table: pa.Table, row: int) -> str:
        """The text of a row, for messages."""
        (fields,) = table.drop_columns([self.column]).slice(row, 1).to_pylist()
        found = f" ({reprlib.repr(fields)})" if fields else ""
        return f"row {row} of a block{found}: the text in column {self.column!r}"


def divide(
    keywords: Mapping[str, Any], called: Callable[..., Any]
) -> tuple[EmbedderKeywords, dict[str, Any]]:
    """Keywords of loading, and those of `Embedder.encode`.

    Raises: TypeError: a keyword that neither has. ValueError: int8 or uint8 without ranges.
    """
    names = _EncodeKeywords.__annotations__
    encode = {name: value for name, value in keywords.items() if name in names}
    load = {name: value for name, value in keywords.items() if name not in names}
    unknown = load.keys() - EmbedderKeywords.__annotations__.keys()
    refuse_unknown(sorted(unknown), called, Embedder, NomicBert.from_pretrained, more=names)
    precision = encode.get("precision", "float32")
    quantization.check(precision, None, 0)
    if quantization.needs_ranges(precision) and encode.get("ranges") is None:
        raise ValueError(
            f"precision {precision!r} needs ranges, the same for all blocks: an array (2, width), "
            "minimum and maximum per column of some thousand float32 vectors"
        )
    return cast("EmbedderKeywords", load), encode


def check_columns(schema: Any, column: str, output: str) -> None:
    """Refuse a schema, Arrow's or Ray's, that has no such texts, or has the output already."""
    kinds = dict(zip(schema.names, schema.types, strict=True))
    if column not in kinds:
        raise ValueError(f"there is no column {column!r}, only {', '.join(map(repr, kinds))}")
    if output in kinds:
        raise ValueError(f"there is a column {output!r} already: give another name as output")
    kind = kinds[column]
    if isinstance(kind, pa.DataType) and not _is_text(kind):
        raise ValueError(
            f"column {column!r} has the type {kind}, not strings: cast it, or name another"
        )


def known_policy(on_null: OnNull) -> OnNull:
    """Refuse an unknown policy for nulls."""
    if on_null not in get_args(OnNull):
        known = ", ".join(get_args(OnNull))
        raise ValueError(f"on_null must be one of {known}, not {on_null!r}")
    return on_null


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    tests = (
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_string_view,
        pa.types.is_null,
    )
    return any(test(kind) for test in tests)


def _assigned() -> Mapping[str, float]:
    """The resources of this process, if it is a worker of Ray."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return {}
    context = ray.get_runtime_context()
    if context.worker.mode != ray.WORKER_MODE:
        return {}
    found: Mapping[str, float] = context.get_assigned_resources()
    return found
