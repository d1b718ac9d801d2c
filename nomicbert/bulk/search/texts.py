"""Files and folders of texts -> the files to embed, and the folder for their vectors.

    notes/          -> notes/.nomicbert/vectors/
    notes/todo.md   -> notes/.nomicbert/todo.md.vectors/
    several, or a place that cannot be written -> ~/.cache/nomicbert/search/texts-DIGEST/

Where in the flow: `nomicbert search` calls this before a model is loaded; `kept` embeds the files.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import closing
from typing import NamedTuple

from nomicbert.bulk.inputs.feed import Feed
from nomicbert.bulk.inputs.formats import InputFormat
from nomicbert.bulk.inputs.rows import Span
from nomicbert.bulk.inputs.sources import Source, files_of, find_sources
from nomicbert.bulk.inputs.streams import STDIN
from nomicbert.bulk.job.separate import refuse_names
from nomicbert.bulk.place import Place
from nomicbert.bulk.places import LocalPlace, place
from nomicbert.bulk.search.mapped import cache_folder

# In a folder of texts; hidden, so that it is no input.
FOLDER = ".nomicbert"


class Texts(NamedTuple):
    """What to embed.

    Attributes:
        files: their names.
        folder: for the vectors.
        left_out: why files of folders are no texts, by name.
    """

    files: list[str]
    folder: str
    left_out: dict[str, str]


def find_texts(inputs: Sequence[str], field: str) -> Texts:
    """The files of inputs.

    Files of a folder that are no text, or rows without the field, are left out; one that is named
    itself must be readable. Of several links to one file the first is taken.

    Args:
        inputs: files, folders, patterns and URLs.
        field: name of the field that holds the text, in files of rows.

    Raises: ValueError: an input does not exist or holds no texts. OSError: reading failed.
    """
    files: list[str] = []
    left_out: dict[str, str] = {}
    seen: set[str] = set()
    for name in inputs:
        if name == STDIN:
            raise ValueError("standard input is read once, and texts are kept: name a file")
        at = place(name)
        if at.kind() != "folder":
            for source in find_sources([name], InputFormat.passages):
                if source.place.identity not in seen:
                    _look_at(source, field)
                    files.append(source.name)
                seen.add(source.place.identity)
            continue
        for file in files_of(at):
            if file.identity in seen:
                continue
            seen.add(file.identity)
            if problem := _problem(file, field):
                left_out[file.name] = problem
            else:
                files.append(file.name)
    if not files:
        name, problem = next(iter(left_out.items()))
        raise ValueError(f"{' '.join(inputs)}: no file holds texts: {problem}")
    return Texts(files, folder_for(inputs), left_out)


def folder_for(inputs: Sequence[str]) -> str:
    """The folder for the vectors of inputs; see the head of this module."""
    at = place(inputs[0])
    if len(inputs) == 1 and isinstance(at, LocalPlace) and (kind := at.kind()):
        parent, name = (at.path, "") if kind == "folder" else os.path.split(at.path)
        if os.access(parent or os.curdir, os.W_OK):
            return os.path.join(parent, FOLDER, f"{name}.vectors" if name else "vectors")
    known = json.dumps(sorted(place(name).identity for name in inputs))
    return str(cache_folder() / f"texts-{hashlib.sha256(known.encode()).hexdigest()[:32]}")


def _problem(file: Place, field: str) -> str:
    """Why a file of a folder is left out; empty for one of texts."""
    try:
        (source,) = find_sources([file.name], InputFormat.passages)
        _look_at(source, field)
    except ValueError as error:
        return str(error)
    return ""


def _look_at(source: Source, field: str) -> None:
    """Refuse a file that cannot be opened, or whose first row has no text.

    Raises: ValueError: the message names it. OSError: reading failed.
    """
    if source.once:
        raise ValueError(f"{source.name} can be read only once: save it to a file first")
    refuse_names([source])
    if source.format is InputFormat.passages:
        with source.place.open():
            return
    with closing(Feed([source], [Span(0)], field=field, on_null="skip")) as feed:
        feed.check_first_rows()
