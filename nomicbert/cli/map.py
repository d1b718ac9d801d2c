"""`nomicbert map`: a picture of one's vectors, in one HTML page that needs nothing else.

Where in the flow: `nomicbert.bulk.write_map` does the work; this module reads the options, shows
progress on stderr, and says what was drawn.
"""

import json
from dataclasses import asdict
from enum import Enum
from typing import Annotated

import typer

from nomicbert.cli import console

EXAMPLES = """\b
Examples:
  nomicbert map vectors/ -o map.html
  nomicbert map vectors/ -o map.html --color topic --png map.png
  nomicbert map vectors/ -o map.html --sample 10000 --title "Our tickets"
"""


class MethodName(str, Enum):
    """What --method takes."""

    auto = "auto"
    tsne = "tsne"
    pacmap = "pacmap"


def draw(
    vectors: Annotated[
        str,
        typer.Argument(
            metavar="VECTORS", help="A folder that `nomicbert embed` has written, or .parquet file."
        ),
    ],
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FILE", help="The page to write, .html.")
    ],
    text: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Text to show. Default: the text that was embedded."),
    ] = None,
    color: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="Colours: a group per value, or a scale of numbers. Default: regions of the map, "
            "named by their words.",
        ),
    ] = None,
    method: Annotated[
        MethodName,
        typer.Option(help="How points are placed. auto: t-SNE, PaCMAP above 10,000 points."),
    ] = MethodName.auto,
    sample: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Draw N rows, chosen at random.")
    ] = None,
    png: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write a picture too, without a browser.")
    ] = None,
    title: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Title of the page. Default: VECTORS.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files that exist.")
    ] = False,
    json_output: Annotated[
        bool, typer.Option("--json", help="Print a JSON document of what was drawn.")
    ] = False,
) -> None:
    """Draw a map of vectors: one HTML page, where similar texts are close to each other.

    The page shows the text of a point, searches, zooms, and makes no request. A table of the points
    is written next to it, with the suffix .parquet.
    """
    # Slow imports, so they follow the reading of the arguments.
    from nomicbert.bulk.write_map import write_map

    with console.open_bar("Drawing", " steps") as bar:

        def step(doing: str, done: int, total: int) -> None:
            bar.total = total
            bar.n = done
            bar.set_description(doing.capitalize())

        made = write_map(
            vectors,
            output,
            text=text,
            color=color,
            method=method.value,
            sample=sample,
            picture=png,
            title=title,
            overwrite=overwrite,
            step=step,
        )
    of = f" of {made.rows:,}" if made.points < made.rows else ""
    noun = "point" if made.points == 1 else "points"
    files = ", ".join(filter(None, (made.page, made.table, made.picture)))
    console.tell(f"a map of {made.points:,}{of} {noun}, in {made.seconds:.1f} s: {files}")
    if json_output:
        console.put(json.dumps(asdict(made), indent=2))
