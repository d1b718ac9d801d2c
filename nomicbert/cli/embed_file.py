"""`nomicbert embed` to one file, which appears when it is complete.

Where in the flow: `embed` comes here with its options. Inputs and outputs are opened, and the first
rows are written to nowhere, before a model is loaded. `bulk.blocks` does the work.
"""

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any, BinaryIO

from nomicbert.bulk.inputs.feed import CHECKED, Feed
from nomicbert.bulk.inputs.formats import InputFormat
from nomicbert.bulk.inputs.rows import Misfit, Row, Span
from nomicbert.bulk.inputs.sources import Source, find_sources
from nomicbert.bulk.job.separate import refuse_names
from nomicbert.bulk.optional import need_pyarrow
from nomicbert.bulk.output import (
    OutputFormat,
    choose_output_format,
    is_stream,
    label,
    open_output,
    open_writer,
)
from nomicbert.cli import checks, console
from nomicbert.cli.embed_columns import look_at_names, refusing_missing
from nomicbert.cli.embed_request import Request, counted, say_left_out, say_recognised

if TYPE_CHECKING:
    from nomicbert.bulk.blocks import Written
    from nomicbert.bulk.writing import Vectors, Write

# Formats whose rows have no fields but the text, and those whose rows have no name of their own.
BARE = {InputFormat.text, InputFormat.document}
PLAIN = {*BARE, InputFormat.passages}


@dataclass(frozen=True)
class Outputs:
    """The files to write.

    Attributes:
        form: of the vectors' file.
        vectors: that file.
        meta: with .npy, a file for the other fields, if there are any.
        rejects: file for the rows that cannot be used; None if such a row is an error.
        numbered: names of the sources whose rows get a number, and with several also their source.
        field: name of the field that holds the text.
        whole: all fields are kept.
        schema: columns of a Parquet file, as far as they are known.
        missing: fields to keep that have not been found yet.
    """

    form: OutputFormat
    vectors: str
    meta: str | None
    rejects: str | None
    numbered: frozenset[str]
    field: str
    whole: bool
    schema: Any
    missing: list[str]

    @property
    def names(self) -> list[str]:
        """All files to write."""
        return [name for name in (self.vectors, self.meta, self.rejects) if name is not None]

    def write(self, files: Sequence[BinaryIO], empty: "Vectors") -> "AbstractContextManager[Write]":
        """The writer of these files, opened, but for `rejects`."""
        settings = {"field": self.field, "whole": self.whole, "schema": self.schema}
        return open_writer(self.form, files, empty, **settings)


def embed_file(
    request: Request, output_format: OutputFormat | None, overwrite: bool, ranges: str | None
) -> None:
    """Check the rest of the options, then embed all inputs to one file.

    Args:
        request: the options.
        output_format: None chooses by the suffix.
        overwrite: replace existing files.
        ranges: file of --ranges, which must not be replaced.

    Raises: ValueError: a mistake in the options or the inputs. OSError: reading or writing failed.
    """
    form = choose_output_format(request.output, output_format)
    if form is OutputFormat.parquet:
        need_pyarrow(f"writing {request.output}")
    sources = find_sources(request.inputs, request.reading["input_format"])
    checks.refuse_field_of_text(sources, request.reading["field"])
    outputs = _outputs(request, form, sources)
    checks.keep_apart(outputs.names, request.inputs, sources, ranges)
    checks.refuse_inside(request.output, request.inputs)
    checks.refuse_existing(outputs.names, overwrite)
    if len(outputs.numbered) > 1:
        refuse_names(sources)
    say_recognised(sources)
    _try_first_rows(request, outputs, sources)
    with ExitStack() as stack:
        feed = stack.enter_context(closing(_feed(request, sources)))
        files = [stack.enter_context(open_output(path)) for path in outputs.names]
        rejects = files.pop() if outputs.rejects else None

        from nomicbert.bulk.blocks import embed_all  # a slow import: it follows the checks

        encoder = request.load()
        progress = request.open_progress(feed.total_bytes or 0)
        stack.enter_context(progress)
        started = time.perf_counter()
        with outputs.write(files, encoder.empty) as write:
            written = embed_all(
                encoder,
                feed,
                refusing_missing(write, outputs.missing, sources),
                progress,
                rejects=rejects,
                numbered=outputs.numbered,
            )
        seconds = time.perf_counter() - started
    _report(request, outputs, written, seconds)


def _outputs(request: Request, form: OutputFormat, sources: Sequence[Source]) -> Outputs:
    """The files to write.

    Raises: ValueError: one that is not written now is there from another run.
    """
    columns, skips = request.reading["columns"], request.reading["on_error"] == "skip"
    plain = {source.name for source in sources if source.format in PLAIN}
    numbered = frozenset(plain if columns is None else ())
    # a column of Parquet has one type, and whether a stream has an `id` is known too late
    if form is OutputFormat.parquet and any(s.once and s.name not in plain for s in sources):
        numbered = frozenset()
    # lone texts have no field but the row's number
    bare = all(source.format in BARE for source in sources)
    has_fields = columns != () and (not bare or len(numbered) > 1)
    has_fields = has_fields or request.chunking is not None
    if skips and is_stream(request.output):
        raise ValueError(
            f"--on-error skip writes the rows that it leaves out next to the output, and "
            f"{label(request.output)} has no folder: name a file, or pass --on-error fail"
        )
    stem = request.output.removesuffix(f".{form.value}")
    meta, rejects = f"{stem}.meta.jsonl", f"{request.output}.rejects.jsonl"
    writes_meta = form is OutputFormat.npy and has_fields
    checks.refuse_left_over([] if writes_meta or form is not OutputFormat.npy else [meta])
    checks.refuse_left_over([] if skips else [rejects])
    schema, missing = _schema(request, form, sources, numbered)
    return Outputs(
        form,
        request.output,
        meta if writes_meta else None,
        rejects if skips else None,
        numbered,
        request.field,
        columns is None,
        schema,
        missing,
    )


def _schema(
    request: Request, form: OutputFormat, sources: Sequence[Source], numbered: frozenset[str]
) -> tuple[Any, list[str]]:
    """The columns of a Parquet file, as far as they are known, else None; those not found yet.

    Raises: ValueError: no input has a column that --columns names; or see `schema_of`.
    """
    columns = request.reading["columns"]
    reading = {"field": request.field, "on_error": request.reading["on_error"]}
    schema = None
    if form is OutputFormat.parquet:
        from nomicbert.bulk.parquet import schema_of, with_chunk_columns

        schema = schema_of(sources, columns=columns, numbered=numbered, **reading)
        if request.chunking is not None and schema is not None:
            schema = with_chunk_columns(schema)
    missing = [] if schema is not None else look_at_names(sources, columns=columns, **reading)
    return schema, missing


def _feed(request: Request, sources: Sequence[Source]) -> Feed:
    reading = request.reading
    return Feed(
        sources,
        [Span(index) for index in range(len(sources))],
        field=request.field,
        columns=reading["columns"],
        on_error=reading["on_error"],
        on_null=reading["on_null"],
    )


def _try_first_rows(request: Request, outputs: Outputs, sources: Sequence[Source]) -> None:
    """Write the first row of each source to nowhere, to find mistakes early.

    Raises: ValueError: the row does not fit the output, or its columns cannot.
    """
    import numpy as np

    rows: list[Row] = []
    for source in sources[:CHECKED]:
        if not source.once:
            with closing(_feed(request, [source])) as feed:
                rows += [feed.take().row for _ in range(next(feed, None) is not None)]
    nowhere = [BytesIO() for name in (outputs.vectors, outputs.meta) if name is not None]
    vectors: Any = np.zeros((len(rows), 1), np.float32)
    try:
        with outputs.write(nowhere, vectors[:0]) as write:
            write(rows, vectors)
        if outputs.form is OutputFormat.jsonl or outputs.meta:
            from nomicbert.bulk.writing import refuse_columns

            refuse_columns(rows, outputs.field if outputs.meta else None)
    except Misfit as error:
        if outputs.rejects is None:
            raise ValueError(f"{rows[error.index].where}: {error.problem}") from error


def _report(request: Request, outputs: Outputs, written: "Written", seconds: float) -> None:
    """Say what was done."""
    if written.broken:
        console.say(
            f"{counted(written.broken, 'vector')} with NaN or infinity; the first is that of "
            f"{written.first_broken}"
        )
    say_left_out(written.skipped, written.rejected, written.truncated, outputs.rejects or "")
    console.tell(
        f"{counted(written.vectors, 'vector')} of {written.width:,} {written.dtype} values in "
        f"{seconds:.1f} s: {' and '.join(map(label, outputs.names))}"
    )
    request.report("done", outputs=outputs.names, seconds=round(seconds, 3), **vars(written))
