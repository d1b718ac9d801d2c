"""Run tasks of mteb and compare our scores with those of the checkpoint's model card.

    python -m bench.mteb_scores nomic-ai/nomic-embed-text-v1.5 --tasks SciFact STSBenchmark

Needs nomicbert[mteb], access to the hub for datasets, and a GPU for most tasks. A score agrees with
the card if it is within 0.1 points of it, in the metric that mteb ranks the task by. The exit code
is 1 if a score differs or a task failed. Tasks that the card lacks get no verdict.
"""

import argparse
import importlib.metadata
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import nomicbert
from bench.mteb_card import Card, Entry, path_of, read_card
from nomicbert import Embedder, NomicBertError
from nomicbert.integrations.mteb import MTEBEncoder

TOLERANCE = 0.1
# Texts per call. Batches are cut by tokens within it; mteb's default of 32 would leave a GPU idle.
BATCH_SIZE = 1024
HEAD = ("task", "subset", "metric", "ours", "card", "difference", "")


@dataclass(frozen=True)
class Row:
    """One score, in points of 100, or the reason why there is none.

    Attributes:
        task: its name in mteb.
        subset: of its dataset.
        split: of its dataset.
        metric: the one that mteb ranks by.
        ours: our score; None if the task failed.
        card: the card's score; None if it has none for vectors of this width.
        verdict: "agrees", "differs", "failed: ..." or nothing.
        scores: metric -> ours, followed by the card's if it has one.
    """

    task: str
    subset: str
    split: str
    metric: str
    ours: float | None
    card: float | None
    verdict: str
    scores: dict[str, list[float]]

    @property
    def bad(self) -> bool:
        """Whether it makes the command fail."""
        return bool(self.verdict) and self.verdict != "agrees"

    def cells(self) -> list[str]:
        """Its cells in the table."""
        numbers = [self.ours, self.card]
        both = self.ours is not None and self.card is not None
        difference = f"{self.ours - self.card:+.2f}" if both else ""  # type: ignore[operator]
        shown = ["" if number is None else f"{number:.2f}" for number in numbers]
        return [self.task, self.subset, self.metric, *shown, difference, self.verdict]


def judge(ours: float, card: float | None) -> str:
    """The verdict on one score."""
    if card is None:
        return ""
    return "agrees" if abs(ours - card) <= TOLERANCE else "differs"


def run(encoder: MTEBEncoder, name: str, entry: Entry | None, with_figures: bool) -> Iterator[Row]:
    """Run one task, on the card's subset and split if the card has it.

    Args:
        encoder: the model.
        name: of the task.
        entry: of the card, or None.
        with_figures: False if the card's figures are for vectors of another width.

    Yields: one row per split and subset.
    """
    import mteb

    chosen = {"eval_splits": [entry.split], "hf_subsets": [entry.subset]} if entry else {}
    task = mteb.get_task(name, **chosen)
    metric = task.metadata.main_score
    result = mteb.evaluate(
        encoder, task, encode_kwargs={"batch_size": BATCH_SIZE}, cache=None, raise_error=False
    )
    for error in result.exceptions or ():
        why = str(error.exception).strip().splitlines()
        yield Row(name, "", "", metric, None, None, f"failed: {why[-1] if why else ''}", {})
    for split, found in [pair for each in result.task_results for pair in each.scores.items()]:
        for scores in found:
            figures = entry.scores if entry and with_figures else {}
            both = {
                key: [100 * value, *([figures[key]] if key in figures else [])]
                for key, value in scores.items()
                if isinstance(value, float) and not math.isnan(value)
            }
            ours, card = 100 * scores["main_score"], figures.get(metric)
            subset = scores["hf_subset"]
            yield Row(name, subset, split, metric, ours, card, judge(ours, card), both)


def average(rows: list[Row], card: Card, width: int) -> Row | None:
    """The mean over the card's tasks, compared with the mean that it states for this width.

    None if the card states none, or if a task is missing.
    """
    ours = {row.task: row.ours for row in rows if row.ours is not None}
    wanted = [entry.task for entry in card.entries if entry.counts]
    if str(width) not in card.averages or not set(wanted) <= set(ours):
        return None
    found, stated = mean(ours[task] for task in wanted), card.averages[str(width)]
    title = f"mean of {len(wanted)} tasks"
    return Row(title, "", "", "main score", found, stated, judge(found, stated), {})


def table(rows: list[Row]) -> str:
    """The rows in columns: names left-aligned, numbers right-aligned."""
    lines = [list(HEAD), *(row.cells() for row in rows)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(HEAD))]
    left = (0, 1, 2, len(HEAD) - 1)
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place in left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def read_options(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.mteb_scores", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("model", help="a checkpoint's folder or repository id")
    parser.add_argument("--tasks", nargs="+", metavar="NAME", help="default: all of the card")
    parser.add_argument("--card", type=Path, help="default: bench/cards/NAME.json of the model")
    parser.add_argument("--matryoshka-dim", type=int, metavar="N")
    parser.add_argument(
        "--max-length", type=int, metavar="N", help="default: the limit of the card's authors"
    )
    parser.add_argument("--device", help="default: a GPU if there is one", default="auto")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every metric here")
    options = parser.parse_args(arguments)
    path = options.card or path_of(options.model)
    if options.card and not path.is_file():
        parser.error(f"there is no card {path}")
    options.card = read_card(path) if path.is_file() else None
    if options.card is None and not options.tasks:
        parser.error(f"there is no card {path}: name --tasks")
    if options.card and options.max_length is None:
        options.max_length = options.card.max_length
    options.tasks = options.tasks or [e.task for e in options.card.entries if e.counts]
    if unknown := list(_unknown(options.tasks)):
        parser.error("; ".join(unknown))
    return options


def _unknown(names: list[str]) -> Iterator[str]:
    import mteb

    for name in names:
        try:
            mteb.get_task(name)
        except KeyError as error:
            yield str(error.args[0])


def load(options: argparse.Namespace) -> MTEBEncoder:
    """The model that the command line asks for."""
    return MTEBEncoder(
        Embedder(options.model, device=options.device, dtype=options.dtype),
        name=options.card.model if options.card else None,
        matryoshka_dim=options.matryoshka_dim,
        max_length=options.max_length,
    )


def main(arguments: list[str] | None = None) -> int:
    """Run, print and write; return 1 if a score differs or a task failed, 2 if loading failed."""
    options = read_options(arguments)
    try:
        encoder = load(options)
    except (NomicBertError, ValueError) as error:
        print(f"bench.mteb_scores: {error}", file=sys.stderr)
        return 2
    card: Card | None = options.card
    full = encoder.embedder.get_sentence_embedding_dimension()
    width = options.matryoshka_dim or full
    rows: list[Row] = []
    for name in options.tasks:
        rows += run(encoder, name, card.find(name) if card else None, width == full)
        if name == options.tasks[-1] and card and (last := average(rows, card, width)):
            rows.append(last)
        print(table(rows[-1:]).splitlines()[1], file=sys.stderr)
        if options.json:
            # after every task, because a run takes hours and may be interrupted
            options.json.write_text(written(options, width, rows), "utf-8")
    print(table(rows))
    return 1 if any(row.bad for row in rows) else 0


def written(options: argparse.Namespace, width: int, rows: list[Row]) -> str:
    """JSON of the settings and versions, and of the rows, one per line."""
    about: dict[str, Any] = {
        "model": options.model,
        "source": options.card.source if options.card else None,
        "width": width,
        "max_length": options.max_length,
        "device": options.device,
        "dtype": options.dtype,
        "versions": {
            "nomicbert": nomicbert.__version__,
            **{name: importlib.metadata.version(name) for name in ("mteb", "torch")},
        },
    }
    lines = ",\n".join(json.dumps(asdict(row)) for row in rows)
    return json.dumps(about, indent=1).removesuffix("\n}") + f',\n "rows": [\n{lines}\n]}}\n'


if __name__ == "__main__":
    sys.exit(main())
