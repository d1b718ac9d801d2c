"""A folder of vectors -> a map: an HTML page, its points as Parquet, and a picture if wanted.

    from nomicbert.bulk.write_map import write_map

    write_map("vectors/", "map.html", color="module")

Where in the flow: `stored` reads the folder, `projection` places the points, `map/` colours, names
and draws them. `nomicbert map` calls this. Needs pyarrow and scikit-learn; a picture, matplotlib.
"""

import importlib.util
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

import numpy as np

from nomicbert.bulk.inputs.rows import ROW
from nomicbert.bulk.job.separate import is_inside
from nomicbert.bulk.optional import need_pyarrow
from nomicbert.bulk.output import is_stream, open_output
from nomicbert.bulk.places import place
from nomicbert.bulk.projection import SEED, Method, choose_method, project
from nomicbert.bulk.vector_files import naming_damage, open_parquet_file
from nomicbert.errors import to_install

if TYPE_CHECKING:
    from nomicbert.bulk.map.colours import Colours
    from nomicbert.bulk.stored import StoredVectors

Doing: TypeAlias = Callable[[str, int, int], None]

PAGES = (".html", ".htm")
HOW = {"plane": "at their true distances", "tsne": "by t-SNE", "pacmap": "by PaCMAP"}


@dataclass(frozen=True)
class MapReport:
    """What was drawn.

    Attributes:
        page: the HTML file.
        table: the Parquet file with the points.
        picture: the PNG, or None.
        points: number of points.
        rows: number of vectors there are, of which the points are a sample if they are fewer.
        method: "tsne", "pacmap", or "plane" for up to three points.
        colored_by: the column of the colours; None for regions of the map.
        groups: names of the groups, the largest first; empty for a scale.
        seconds: for all of it.
    """

    page: str
    table: str
    picture: str | None
    points: int
    rows: int
    method: str
    colored_by: str | None
    groups: tuple[str, ...]
    seconds: float


def write_map(
    vectors: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    text: str | None = None,
    color: str | None = None,
    method: Method = "auto",
    sample: int | None = None,
    picture: str | os.PathLike[str] | None = None,
    title: str | None = None,
    overwrite: bool = False,
    step: Doing | None = None,
) -> MapReport:
    """Draw a map of vectors: points that are close to each other have similar vectors.

    The files appear when all of them are complete: the page, a table of the points of the same name
    with the suffix `.parquet`, and the picture.

    Args:
        vectors: folder or URL that `nomicbert embed` has written, or a `.parquet` file.
        output: the page, `.html`.
        text: column to show; None for the text that was embedded, if it was kept.
        color: column that decides the colours; None for regions, which are named by their words.
        method: see `project`.
        sample: draw so many rows at random, the same in every call; None for all.
        picture: a PNG to write too, or None.
        title: of the page; None for the name of the vectors.
        overwrite: replace files that exist.
        step: called with what is done, the steps done and their total, now and then.

    Returns: what was drawn.

    Raises:
        ValueError: an option is wrong, the vectors cannot be used, or a file exists.
        ImportError: a package is missing; the message names the extra.
        OSError: reading or writing failed; no file is left.
    """
    started = time.perf_counter()
    name = os.fspath(vectors)
    files = _files(os.fspath(output), None if picture is None else os.fspath(picture))
    _refuse_existing(files, overwrite)
    if sample is not None and sample < 1:
        raise ValueError(f"sample must be at least 1, not {sample}")
    _keep_apart(name, files)
    need_pyarrow(f"a map of {name}")
    _refuse_other_table(files[1])
    if picture is not None and importlib.util.find_spec("matplotlib") is None:
        raise ImportError(f"a picture needs matplotlib: {to_install('map')}")
    from nomicbert.bulk.stored import open_vectors

    stored = open_vectors(name)
    stored.take([], [name for name in (text, color) if name is not None])  # refuses unknown ones
    rows = _rows(stored.rows, sample)
    chosen = choose_method(len(rows), method)
    with _opened(files) as opened:
        say = step or (lambda doing, done, total: None)
        say("reading", 0, 1)
        read = stored.vectors(None if len(rows) == stored.rows else rows)
        each = None if step is None else lambda done, total: say("placing points", done, total)
        places = project(read, method, each)
        del read
        say("drawing", 0, 1)
        heading = {
            "title": title or f"Map of {name.rstrip('/')}",
            "summary": _summary(stored, len(rows), chosen),
        }
        colours = _draw(stored, rows, places, text or stored.field, color, heading, opened)
        say("drawing", 1, 1)
    return MapReport(
        page=files[0],
        table=files[1],
        picture=files[2] if files[2:] else None,
        points=len(rows),
        rows=stored.rows,
        method=chosen,
        colored_by=color,
        groups=tuple(group.name for group in getattr(colours, "groups", ())),
        seconds=round(time.perf_counter() - started, 3),
    )


def _draw(
    stored: "StoredVectors",
    rows: Sequence[int],
    places: Any,
    text: str | None,
    color: str | None,
    heading: dict[str, str],
    opened: Sequence[BinaryIO],
) -> "Colours":
    """Fill the opened files: the page, the table, and the picture if there is a third one."""
    import pyarrow as pa

    from nomicbert.bulk.map.cells import as_strings
    from nomicbert.bulk.map.colours import Groups, colours_of
    from nomicbert.bulk.map.labels import MOST_TEXT, labels_of, regions
    from nomicbert.bulk.map.page import page
    from nomicbert.bulk.map.table import write_table

    if stored.columns:
        table = stored.table(rows, [*stored.columns])
    else:  # the number of the row is all that is known
        table = pa.table({ROW: rows})
    if color is None:
        texts = None if text is None else as_strings(table[text], most=MOST_TEXT).to_pylist()
        colours: Colours = regions(places, texts)
    else:
        colours = colours_of(color, table[color])
    labels = labels_of(places, colours) if isinstance(colours, Groups) else []
    write_table(opened[1], table, places, colours)
    if opened[2:]:
        from nomicbert.bulk.map.picture import draw

        draw(opened[2], places, colours, labels, **heading)
    opened[0].write(page(places, table, text, colours, labels, **heading))
    return colours


def _files(page: str, picture: str | None) -> list[str]:
    """The files to write: page, table, and the picture if there is one."""
    path = Path(page)
    if path.suffix.lower() not in PAGES or is_stream(page):
        raise ValueError(f"the output {page} is an HTML page: name a file that ends in .html")
    if picture is not None and (Path(picture).suffix.lower() != ".png" or is_stream(picture)):
        raise ValueError(f"the picture {picture} is a PNG: name a file that ends in .png")
    return [page, str(path.with_suffix(".parquet")), *filter(None, [picture])]


def _refuse_existing(files: Sequence[str], overwrite: bool) -> None:
    for file in files:
        if not overwrite and os.path.exists(file):
            raise ValueError(
                f"the output {file} exists: pass overwrite=True (--overwrite) to replace it"
            )


def _refuse_other_table(file: str) -> None:
    """Refuse to replace a .parquet file that no map has written: nobody has named it."""
    if not os.path.exists(file):
        return
    names = list[str]()  # of a damaged file
    with suppress(ValueError), open(file, "rb") as opened, naming_damage(file):
        names = open_parquet_file(opened).schema_arrow.names
    if not {"x", "y"} <= {*names}:
        raise ValueError(
            f"{file}, where the points of the map go, exists and is not the table of a map: name "
            "the page otherwise, or move it away"
        )


def _keep_apart(vectors: str, files: Sequence[str]) -> None:
    """Refuse to write into the vectors."""
    for file in files:
        inside = is_inside(file, vectors)
        if inside and place(vectors).kind() == "folder":
            raise ValueError(f"the output {file} is inside {vectors}: choose a place elsewhere")
        both = os.path.exists(file) and os.path.exists(vectors)
        if inside or (both and os.path.samefile(file, vectors)):
            raise ValueError(f"the output {file} would overwrite the vectors: choose another name")


def _rows(count: int, sample: int | None) -> Sequence[int]:
    """The rows to draw, in order."""
    if sample is None or sample >= count:
        return range(count)
    found = np.random.default_rng(SEED).choice(count, sample, replace=False)
    found.sort()
    return [int(row) for row in found]


def _summary(stored: "StoredVectors", points: int, method: str) -> str:
    of = f"{points:,} points"
    if points < stored.rows:
        of = f"A random sample of {points:,} of {stored.rows:,} vectors"
    return f"{of}, {stored.width} values each, placed {HOW[method]}"


@contextmanager
def _opened(files: Sequence[str]) -> Iterator[list[BinaryIO]]:
    """Open all outputs; they appear when the block has succeeded, the first one last."""
    if not files:
        yield []
        return
    with open_output(files[0]) as file, _opened(files[1:]) as others:
        yield [file, *others]
