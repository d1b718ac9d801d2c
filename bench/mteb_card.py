"""Convert a model card's scores to JSON, under mteb's current names.

    python -m bench.mteb_card README.md --model nomic-ai/nomic-embed-text-v1.5 > bench/cards/X.json

Reads the model-index in the card's front matter, and the average for each width from its tables.
`bench.mteb_scores` compares our scores with these files.
"""

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

CARDS = Path(__file__).parent / "cards"
# Names of tasks and metrics that mteb has changed since 2024.
TASKS = {"CMedQAv1": "CMedQAv1-reranking", "CMedQAv2": "CMedQAv2-reranking"}
OLD_COSINE, COSINE = "cos_sim_", "cosine_"
# Twelve forums, which count as one task in the average: CQADupstackRetrieval.
FORUM = re.compile(r"CQADupstack.+Retrieval")
NAME = re.compile(r"MTEB (\S+)(?: \(.+\))?")


@dataclass(frozen=True)
class Entry:
    """One task of a card.

    Attributes:
        task: its name in mteb.
        type: such as "STS".
        subset: of the dataset, mostly a language; "default" if there is only one.
        split: of the dataset.
        revision: of the dataset, or None if the card does not state it.
        main_score: the metric that mteb ranks by.
        scores: every metric of the card, in points of 100.
    """

    task: str
    type: str
    subset: str
    split: str
    revision: str | None
    main_score: str
    scores: dict[str, float]

    @property
    def figure(self) -> float:
        """The card's score in the metric that mteb ranks by."""
        return self.scores[self.main_score]

    @property
    def counts(self) -> bool:
        """Whether the task counts in the card's average."""
        return not FORUM.fullmatch(self.task)


@dataclass(frozen=True)
class Card:
    """The scores of a model card.

    Attributes:
        model: repository id.
        source: where the figures come from.
        max_length: tokens at which texts were cut, or None for the checkpoint's own limit.
        averages: width of the vectors -> mean over the tasks; "full" if no width is stated.
    """

    model: str
    source: str
    max_length: int | None
    averages: dict[str, float]
    entries: list[Entry]

    def find(self, task: str) -> Entry | None:
        """The entry for a task of mteb."""
        return next((entry for entry in self.entries if entry.task == task), None)


def path_of(model: str) -> Path:
    """Path of the card of a repository or local folder, by the last part of its name."""
    return CARDS / f"{Path(model).name}.json"


def read_card(path: Path) -> Card:
    """Read a file that `main` has written."""
    raw = json.loads(path.read_text("utf-8"))
    entries = [Entry(**entry) for entry in raw.pop("entries")]
    return Card(**raw, entries=entries)


def convert(text: str, model: str, source: str, max_length: int | None = None) -> Card:
    """Read the card from a README.md.

    Args:
        text: of the README.md.
        model: repository id.
        source: see `Card`.
        max_length: see `Card`.

    Raises: ValueError: it has no model-index. KeyError: mteb does not know a task.
    """
    front = re.match(r"---\n(.*?\n)---", text, re.S)
    index = yaml.safe_load(front[1]).get("model-index") if front else None
    if not index:
        raise ValueError("this card has no model-index in its front matter")
    entries = [_entry(result) for result in index[0]["results"]]
    return Card(model, source, max_length, dict(_averages(text, model)), entries)


def _entry(result: dict[str, Any]) -> Entry:
    import mteb

    dataset = result["dataset"]
    named = NAME.fullmatch(dataset["name"])
    if named is None:
        raise ValueError(f"{dataset['name']!r} is not a name that mteb has written")
    metadata = mteb.get_task(TASKS.get(named[1], named[1])).metadata
    revision = dataset["revision"]
    return Entry(
        task=metadata.name,
        type=metadata.type,
        subset=dataset["config"],
        split=dataset["split"],
        revision=None if revision == "None" else revision,
        main_score=metadata.main_score,
        scores={
            new_metric(metric["type"], metadata.main_score): round(float(metric["value"]), 4)
            for metric in result["metrics"]
        },
    )


def new_metric(old: str, main_score: str) -> str:
    """Mteb's current name of a metric; for reranking it depends on the task's main score."""
    if old in ("map", "mrr"):
        return main_score.replace("map", old)
    return old.replace(OLD_COSINE, COSINE)


def _averages(text: str, model: str) -> Iterator[tuple[str, float]]:
    """(width, mean) for each row about this model in the card's tables."""
    name, head = model.split("/")[-1].lower(), {}
    for line in text.splitlines():
        cells = [cell.strip(" *") for cell in line.strip().strip("|").split("|")]
        if not line.startswith("|"):
            head = {}
        elif not head:
            head = {title: place for place, title in enumerate(cells)}
        elif cells[0].lower() == name:
            width = cells[head["Dimension"]] if "Dimension" in head else "full"
            yield width, float(cells[head["MTEB" if "MTEB" in head else "Average"]])


def written(card: Card) -> str:
    """A card as JSON with one task per line, for `read_card`."""
    fields = asdict(card)
    entries = ",\n".join(json.dumps(entry) for entry in fields.pop("entries"))
    head = json.dumps(fields, indent=1, ensure_ascii=False).removesuffix("\n}")
    return f'{head},\n "entries": [\n{entries}\n]}}'


def main(arguments: list[str] | None = None) -> int:
    """Convert one README.md."""
    parser = argparse.ArgumentParser(prog="python -m bench.mteb_card")
    parser.add_argument("readme", type=Path)
    parser.add_argument("--model", required=True, help="the card's repository id")
    parser.add_argument("--max-length", type=int, help="tokens at which its authors cut the texts")
    options = parser.parse_args(arguments)
    content = options.readme.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    source = f"model-index and tables of {options.model}'s README.md, sha256 {digest}"
    card = convert(content.decode(), options.model, source, options.max_length)
    print(written(card))
    return 0


if __name__ == "__main__":
    sys.exit(main())
