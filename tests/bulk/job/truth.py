"""A job over every kind of input, and what its folder must hold, without the package's readers."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nomicbert.bulk.job.footer import KEY
from tests.bulk.job.standin import Hashes, parts_of, rejects_of

LONG = "far too long " * 10  # refused by an encoder that does not truncate
BLANK, BROKEN = "blank", "broken"


class Truth(NamedTuple):
    """What a job must give.

    Attributes:
        inputs: its files.
        rows: (source, row, text) with vectors, in order.
        rejected: (source, row) of rows that cannot be used.
        skipped: number of rows without a text.
    """

    inputs: list[str]
    rows: list[tuple[str, int, str]]
    rejected: list[tuple[str, int]]
    skipped: int


def lines_of(name: str, texts: list[str]) -> list[bytes]:
    """JSONL; a text may be BLANK or BROKEN."""
    found = []
    for number, text in enumerate(texts):
        if text == BLANK:
            line = b""
        elif text == BROKEN:
            line = b'{"text": ' if number % 2 else b'{"text": "\xff"}'
        else:
            line = json.dumps({"text": text, "id": number}).encode()
        found.append(line + b"\n")
    return found


def build(folder: Path, scale: int = 1) -> Truth:
    """Write the inputs, about 110 rows times `scale`.

    Blank and broken rows stand at the borders of parts of 10 rows, and at the end of files.
    """
    folder.mkdir()
    texts = {name: [f"{name} {n}" for n in range(22 * scale)] for name in "abcde"}
    for at in (0, 9, 10, 11, 21):
        texts["b"][at] = BLANK
        texts["c"][at] = BROKEN
    texts["d"][-1], texts["d"][-2], texts["d"][0] = BLANK, BROKEN, LONG
    texts["c"][12], texts["b"][12] = LONG, "NaN"
    texts["e"] = [*texts["e"][:19], BLANK, BLANK, BROKEN]

    table = pa.table({"text": texts["a"], "id": range(len(texts["a"]))})
    pq.write_table(table, folder / "a.parquet", row_group_size=6)
    content = {name: lines_of(name, texts[name]) for name in "bcde"}
    (folder / "b.jsonl").write_bytes(b"".join(content["b"]))
    with (folder / "c.jsonl.gz").open("wb") as file:  # two members
        for half in (content["c"][:13], content["c"][13:]):
            file.write(gzip.compress(b"".join(half)))
    with (folder / "d.jsonl.zst").open("wb") as file:  # two frames
        for half in (content["d"][:7], content["d"][7:]):
            file.write(pa.compress(b"".join(half), codec="zstd", asbytes=True))
    (folder / "empty.jsonl").write_bytes(b"")
    (folder / "e.jsonl").write_bytes(b"".join(content["e"]).removesuffix(b"\n"))

    names = ["a.parquet", "b.jsonl", "c.jsonl.gz", "d.jsonl.zst", "empty.jsonl", "e.jsonl"]
    inputs = [str(folder / name) for name in names]
    rows, rejected, skipped = [], [], 0
    for path, name in zip(inputs, ["a", "b", "c", "d", "", "e"], strict=True):
        for number, text in enumerate(texts.get(name, [])):
            if text == BLANK:
                skipped += 1
            elif text in (BROKEN, LONG):
                rejected.append((path, number))
            else:
                rows.append((path, number, text))
    return Truth(inputs, rows, rejected, skipped)


def wrong(output: Path, truth: Truth, tasks: int = 1) -> list[str]:
    """What is wrong with a complete folder; empty if nothing is.

    With several tasks the order holds within each of them.
    """
    found = []
    rows: list[tuple[str, int, str]] = []
    vectors: list[Any] = []
    said: dict[str, int] = {"rows": 0, "skipped": 0, "rejected": 0}
    before: dict[str, Any] = {}
    rejects = set()
    for path in parts_of(output):
        table = pq.read_table(path)
        own = list(
            zip(*(table[name].to_pylist() for name in ("source", "row", "text")), strict=True)
        )
        order = [(truth.inputs.index(source), row) for source, row, _ in own]
        if order != sorted(order):
            found.append(f"{path.name}: rows are not in order")
        rows += own
        vectors += table["embedding"].to_pylist()
        footer = json.loads(pq.read_metadata(path).metadata[KEY])
        for name in said:
            said[name] += footer[name]
        task = path.name.split("-")[1]
        if task in before and before[task]["next"] != footer["start"]:
            found.append(f"{path.name} does not follow")
        before[task] = footer
        if footer["rejected"]:
            name = path.name.replace("part", "_rejected").replace("parquet", "jsonl")
            rejects.add(name)
            if len((output / name).read_bytes().splitlines()) != footer["rejected"]:
                found.append(f"{name} has another number of rows")
    if len(before) != tasks or not all(footer["end"] for footer in before.values()):
        found.append("not every task ends")
    if tasks > 1:
        place = {row: index for index, row in enumerate(truth.rows)}
        together = sorted(zip(rows, vectors, strict=True), key=lambda pair: place.get(pair[0], -1))
        rows, vectors = [row for row, _ in together], [vector for _, vector in together]
    if rows != truth.rows:
        found.append(f"{len(rows)} rows, wanted {len(truth.rows)}; or not in order")
    wanted = [Hashes().vector(text) for *_, text in rows]
    if not np.array_equal(np.array(vectors, "f4").view("u4"), np.array(wanted, "f4").view("u4")):
        found.append("other vectors")
    rejected = [(one["source"], one["row"]) for one in rejects_of(output)]
    if sorted(rejected) != sorted(truth.rejected):
        found.append(f"rejected {rejected}")
    if said != {"rows": len(rows), "skipped": truth.skipped, "rejected": len(truth.rejected)}:
        found.append(f"footers state {said}")
    allowed = {"_manifest.json", *(path.name for path in parts_of(output)), *rejects}
    left = {path.name for path in output.iterdir() if not path.name.startswith(".lock")} - allowed
    if left:
        found.append(f"left over: {sorted(left)}")
    return found
