"""What `nomicbert embed` was asked, for outputs of both kinds.

Where in the flow: `embed` makes it from its options; `embed_file` and `embed_folder` load the model
and report with it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nomicbert.bulk.inputs.formats import OF_ARROW, InputFormat
from nomicbert.bulk.inputs.sources import Source
from nomicbert.cli import console

if TYPE_CHECKING:
    from nomicbert.bulk.encoding import Encoder
    from nomicbert.bulk.progress import BulkProgress, Form

NAMES = {InputFormat.jsonl: "JSONL", InputFormat.arrow: "Arrow", InputFormat.parquet: "Parquet"}


@dataclass(frozen=True, kw_only=True)
class Request:
    """The options that outputs of both kinds share.

    Attributes:
        inputs: files, folders, globs and URLs.
        output: a file, "-" or a folder.
        reading: input_format, columns, on_error, on_null, and field or None.
        loading: arguments of Embedder.
        encoding: keywords of `Embedder.encode`.
        chunking: of `ChunkedEncoder`; None for a vector per text.
        progress: whether to show a bar; None for the default.
        json: report as JSON lines on standard output.
    """

    inputs: list[str]
    output: str
    reading: dict[str, Any]
    loading: dict[str, Any]
    encoding: dict[str, Any]
    chunking: dict[str, Any] | None
    progress: bool | None
    json: bool

    @property
    def field(self) -> str:
        """Name of the field that holds the text."""
        return "text" if self.reading["field"] is None else self.reading["field"]

    def load(self) -> "Encoder":
        """Load the model: slow imports, so it follows all other checks."""
        from nomicbert.bulk.encoding import EmbedderEncoder
        from nomicbert.embedder import Embedder

        embedder = Embedder(**self.loading)
        if self.chunking is None:
            return EmbedderEncoder(embedder, **self.encoding)
        from nomicbert.bulk.chunks import ChunkedEncoder

        return ChunkedEncoder(embedder, **self.chunking, **self.encoding)

    def open_progress(self, total: int, left: int | None = None) -> "BulkProgress":
        """The progress, shown as requested; `total` and `left` as in BulkProgress."""
        from nomicbert.bulk.progress import BulkProgress

        quiet: Form | None = "none" if console.is_quiet() else None
        forms: dict[bool | None, Form | None] = {None: quiet, True: "bar", False: "none"}
        form = "json" if self.json else forms[self.progress]
        return BulkProgress(form, total, left, console.put if self.json else console.tell)

    def report(self, event: str, **found: Any) -> None:
        """Write what was done as a JSON line, if requested."""
        if self.json:
            console.put(as_json_line(event, **found))


def as_json_line(event: str, **found: Any) -> str:
    """An event as JSON."""
    return json.dumps({"event": event, **found})


def say_recognised(sources: Sequence[Source]) -> None:
    """Say once per format how inputs are read whose names do not tell."""
    for form in InputFormat:
        names = [source.name for source in sources if source.sniffed and source.format is form]
        if not names or form is InputFormat.text:
            continue
        name = NAMES.get(form, form.value)
        others = f" and {counted(len(names) - 1, 'other input')}" if names[1:] else ""
        console.tell(
            f"{names[0]}{others} look{'' if others else 's'} like {name}: read as {name}"
            + (" (--input-format text reads the lines as texts)" if form not in OF_ARROW else "")
        )


def counted(number: int, noun: str) -> str:
    """A number with its noun, in the plural but for one."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def say_left_out(skipped: int, rejected: int, truncated: int, where: str) -> None:
    """Say how many rows have no vector or one of a part of their text; nothing if there are none.

    Args:
        skipped: rows without a text.
        rejected: rows that could not be used.
        truncated: texts that were cut.
        where: file of the rejected rows.
    """
    found = [
        f"skipped {counted(skipped, 'row')} without a text" if skipped else "",
        f"left out {counted(rejected, 'row')} that cannot be used: {where}" if rejected else "",
        f"truncated {counted(truncated, 'text')}" if truncated else "",
    ]
    if said := "; ".join(filter(None, found)):
        console.say(said)
