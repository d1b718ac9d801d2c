"""Arguments -> the sources that they name: files, folders, patterns, URLs, standard input.

Where in the flow: the first step of a bulk job; everything later works with `Source`s.
Source: the layout of `datasets.Dataset.save_to_disk`, as in datasets' arrow_dataset.py.
"""

import json
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from nomicbert.bulk.inputs.compressed import inflated_head, naming_failures
from nomicbert.bulk.inputs.formats import (
    HEAD,
    IPC_FILE,
    OF_ARROW,
    OF_LINES,
    Compression,
    InputFormat,
    compression_of_content,
    format_of_content,
    format_of_name,
)
from nomicbert.bulk.inputs.rows import Reject
from nomicbert.bulk.inputs.streams import STDIN, Stream
from nomicbert.bulk.optional import need_pyarrow
from nomicbert.bulk.place import Place, has_wildcard
from nomicbert.bulk.places import LocalPlace, place

# Files that `save_to_disk` puts into the folder of a dataset, and of a dictionary of datasets.
DATASET, DATASETS = "state.json", "dataset_dict.json"


@dataclass(frozen=True, slots=True)
class Source:
    """A file of rows.

    Attributes:
        name: the path as the user gave it; for a file of a folder the folder's and the rest.
        place: where it is.
        format: of its rows.
        compression: of the whole file.
        sniffed: whether the format was recognised by content.
    """

    name: str
    place: Place | Stream
    format: InputFormat
    compression: Compression | None
    sniffed: bool

    @property
    def once(self) -> bool:
        """Whether it can be read only once."""
        return isinstance(self.place, Stream) and self.place.once

    def message(self, reject: Reject) -> str:
        """What to say of a row that cannot be used."""
        unit = "line" if self.format in OF_LINES else "row"
        return f"{self.name}, {unit} {reject.number + 1}: {reject.problem}"


def find_sources(inputs: Sequence[str], input_format: InputFormat | None) -> list[Source]:
    """The sources of inputs, in the order of the inputs; those of a folder sorted by path.

    Args:
        inputs: files, folders, patterns, URLs, or "-" for standard input.
        input_format: of all sources; None recognises each by its name, else by its content.
            `passages` recognises them too, and is that of text: files of rows keep their rows.

    Raises: ValueError: there is no such file, it is given twice, or its format is unknown.
        ImportError: pyarrow is needed. OSError: reading failed.
    """
    found, before = list[Source](), set[str]()
    for given in inputs:
        sources = [_recognised(at, input_format) for at in _places(given)]
        for source in sources:
            if source.place.identity in before:
                raise ValueError(f"{source.name} is given twice: its rows would be embedded twice")
        # links within a folder are files of their own: caches link equal files to one
        before.update(source.place.identity for source in sources)
        found += sources
    if not found:
        raise ValueError("there is no input")
    return found


def _places(given: str) -> Iterator[Place | Stream]:
    """The files that an input names."""
    if given == STDIN:
        yield Stream(STDIN)
        return
    at = place(given)
    kind = at.kind()
    if kind == "folder":
        yield from files_of(at)
    elif kind is None:
        matches = [match for match in at.glob() if match.kind() == "file"]
        if not matches:
            problem = "no file matches" if has_wildcard(given) else "No such file or directory"
            raise ValueError(f"cannot read {given}: {problem}")
        yield from matches
    elif isinstance(at, LocalPlace) and not stat.S_ISREG(os.stat(at.path).st_mode):
        yield Stream(at.path)
    else:
        yield at


def files_of(folder: Place) -> list[Place]:
    """The files of a folder, of a dataset that was saved there in the dataset's order.

    Raises: ValueError: there are none, or the dataset is one of several. OSError: reading failed.
    """
    if splits := _setting(folder.child(DATASETS), "splits"):
        choices = " or ".join(folder.child(str(split)).name for split in splits)
        raise ValueError(f"{folder.name} holds several datasets: pass {choices}")
    if shards := _setting(folder.child(DATASET), "_data_files"):
        if _setting(folder.child(DATASET), "_indices_data_files"):
            raise ValueError(
                f"{folder.name} is a selection of a dataset's rows: save it again after "
                "flatten_indices()"
            )
        return [folder.child(shard["filename"]) for shard in shards]
    files = folder.files()
    if not files:
        raise ValueError(f"{folder.name} holds no files (names with . or _ in front do not count)")
    return files


def _setting(at: Place, name: str) -> Any:
    """A value from a file of `save_to_disk`; None if it is missing or the file is another one."""
    if at.kind() != "file":
        return None
    with at.open() as file:
        try:
            found = json.load(file)
        except ValueError:
            return None  # it may be anything: it is read as the other files are
    return found.get(name) if isinstance(found, dict) else None


def _recognised(at: Place | Stream, given: InputFormat | None) -> Source:
    """A source with its format.

    Raises: ValueError: the format is unknown. ImportError: pyarrow is needed. OSError: reading
        failed.
    """
    form, compression = format_of_name(at.name)
    sniffed, head = False, b""
    recognises = given in (None, InputFormat.passages)
    if form is None:  # the name says nothing, or only that it is compressed
        head = _head(at)
        compression = compression or compression_of_content(head)
        if recognises:
            if compression is not None:
                need_pyarrow(f"reading {at.name}")
                whole = len(head) < HEAD
                head = inflated_head(head, at.name, compression)
                if not head and not whole:
                    raise ValueError(
                        f"{at.name}: the first {HEAD:,} bytes of its {compression} stream hold no "
                        "content: name its format with --input-format"
                    )
            try:
                form, sniffed = format_of_content(head), True
            except ValueError as error:
                raise ValueError(f"{at.name} {error}") from error
    if given is not None and (not recognises or form is InputFormat.text):
        form, sniffed = given, False
    assert form is not None
    if form in OF_ARROW or compression is not None:
        need_pyarrow(f"reading {at.name}")
    if form in OF_ARROW and compression is not None:
        raise ValueError(f"{at.name} is a compressed {form.value} file: decompress it first")
    jumps = form is InputFormat.parquet or head.startswith(IPC_FILE)
    if jumps and isinstance(at, Stream) and at.once:
        at.open().close()
        raise ValueError(f"{at.name} is a pipe, but {form.value} needs a file: save it first")
    return Source(at.name, at, form, compression, sniffed)


def _head(at: Place | Stream) -> bytes:
    """The first bytes of a file, up to `HEAD`."""
    if isinstance(at, Stream):
        return at.head()
    with at.open() as file, naming_failures(at.name):
        return file.read(HEAD)
