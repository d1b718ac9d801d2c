"""write_map: the files of a map, and what is refused before points are placed."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nomicbert.bulk import projection
from nomicbert.bulk import write_map as module
from nomicbert.bulk.write_map import write_map
from nomicbert.errors import to_install

ROWS = 6
COLUMNS: dict[str, list[Any]] = {
    "id": [10, 11, 12, 13, 14, 15],
    "text": ["a tree", "</script><b>", None, "a boat", "a ship", "a leaf"],
    "kind": ["t", "t", "s", "s", "s", "t"],
    "x": [0.5, 1.5, 2.5, 3.5, 4.5, 5.5],
}


def vectors_of(rows: int) -> Any:
    """Row n is a multiple of (1, n), so that a place tells the row."""
    return np.stack([np.ones(rows), np.arange(rows)], axis=1).astype(np.float32)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of vectors, and a projection that is quick: the vectors are the places."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    monkeypatch.setattr(module, "project", lambda vectors, method, step: vectors[:, :2])
    save("v.parquet", COLUMNS, vectors_of(ROWS))


def save(name: str, columns: dict[str, list[Any]], vectors: Any) -> None:
    width = vectors.shape[1]
    embedding = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), width)
    pq.write_table(pa.table({**columns, "embedding": embedding}), name)


def data_of(page: str) -> dict[str, Any]:
    content = Path(page).read_text("utf-8")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', content, re.S)
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data


def test_page_and_table() -> None:
    report = write_map("v.parquet", "m.html", color="kind", title="Things & more")
    assert (report.page, report.table, report.picture) == ("m.html", "m.parquet", None)
    assert (report.points, report.rows, report.method) == (6, 6, "tsne")
    assert (report.colored_by, report.groups) == ("kind", ("t", "s"))
    data = data_of("m.html")
    assert data["text"] == [text or "" for text in COLUMNS["text"]]
    assert [one["name"] for one in data["columns"]] == ["id", "kind", "x"]
    assert data["y"] == [4000 * n for n in range(6)]
    content = Path("m.html").read_text("utf-8")
    assert "<title>Things &amp; more</title>" in content
    assert "<p>6 points, 2 values each, placed by t-SNE</p>" in content
    table = pq.read_table("m.parquet").to_pydict()
    assert table["group"] == COLUMNS["kind"]
    assert table["input_x"] == COLUMNS["x"]
    assert table["y"] == [*range(6)]
    assert table["text"] == COLUMNS["text"]
    assert sorted(os.listdir()) == ["m.html", "m.parquet", "v.parquet"]


def test_a_sample_is_said_and_the_same_in_every_call() -> None:
    write_map("v.parquet", "m.html", sample=4)
    content = Path("m.html").read_text("utf-8")
    assert "<p>A random sample of 4 of 6 vectors, 2 values each, placed by t-SNE</p>" in content
    first = pq.read_table("m.parquet").to_pydict()
    assert len(first["id"]) == 4
    # each row has its own place
    assert [place + 10 for place in first["y"]] == first["id"]
    write_map("v.parquet", "m.html", sample=4, overwrite=True)
    assert pq.read_table("m.parquet").to_pydict() == first
    assert write_map("v.parquet", "all.html", sample=6).points == 6


def test_another_text_and_a_scale() -> None:
    report = write_map("v.parquet", "m.html", text="kind", color="x")
    data = data_of("m.html")
    assert data["text"] == COLUMNS["kind"]
    assert data["color"]["values"] == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert data["labels"] == []
    assert report.groups == ()
    assert "group" not in pq.read_table("m.parquet").column_names


def test_vectors_alone() -> None:
    """Without any column the rows are numbered."""
    save("bare.parquet", {}, vectors_of(3))
    assert write_map("bare.parquet", "m.html").method == "plane"
    data = data_of("m.html")
    assert data["text"] is None
    assert data["columns"] == [{"name": "row", "values": ["0", "1", "2"], "codes": [0, 1, 2]}]
    assert [one["name"] for one in data["color"]["groups"]] == ["region 1"]


def test_a_text_that_is_no_string() -> None:
    save("w.parquet", {"tags": [["tree"], ["boat", "sea"], None]}, vectors_of(3))
    write_map("w.parquet", "m.html", text="tags")
    assert data_of("m.html")["text"] == ['["tree"]', '["boat", "sea"]', ""]


def test_a_picture() -> None:
    report = write_map("v.parquet", "m.html", picture="m.png")
    assert report.picture == "m.png"
    assert Path("m.png").read_bytes().startswith(b"\x89PNG")


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "no page": ({"output": "m.txt"}, r"m\.txt is an HTML page: .* ends in \.html"),
    "a stream": ({"output": "-"}, "- is an HTML page"),
    "no picture": ({"picture": "m.jpg"}, r"m\.jpg is a PNG: .* ends in \.png"),
    "no folder": ({"output": "none/m.html"}, "none does not exist: create it first"),
    "page there": (
        {"output": "old.html"},
        r"old\.html exists: pass .* \(--overwrite\)",
    ),
    "table there": ({"output": "v.html"}, r"v\.parquet exists: pass overwrite=True"),
    "picture there": ({"picture": "old.png"}, r"old\.png exists"),
    "over the vectors": (
        {"output": "v.html", "overwrite": True},
        r"v\.parquet would overwrite the vectors",
    ),
    "a table of something else": (
        {"output": "source.html", "overwrite": True},
        r"source\.parquet, where the points of the map go, exists and is not the table of a map",
    ),
    "a table that is damaged": (
        {"output": "damaged.html", "overwrite": True},
        r"damaged\.parquet, where the points of the map go, exists",
    ),
    "inside the vectors": ({"vectors": "w", "output": "w/m.html"}, "w/m.html is inside w"),
    "no sample": ({"sample": 0}, "sample must be at least 1, not 0"),
    "no vectors": ({"vectors": "none/"}, "cannot read none/"),
    "no color": ({"color": "colour"}, "no column 'colour': there are 'id', 'text', 'kind', 'x'"),
    "no text": ({"text": "body"}, "no column 'body'"),
    "no method": ({"method": "umap"}, "method must be"),
    "too few": ({"method": "pacmap"}, "PaCMAP needs 100 points"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("w").mkdir()
    for name in ("old.html", "old.png"):
        Path(name).write_text("kept")
    pq.write_table(pa.table({"text": ["kept"]}), "source.parquet")
    Path("damaged.parquet").write_text("kept")
    before = {path: path.read_bytes() for path in Path().rglob("*.*")}
    monkeypatch.setattr(module, "project", None)
    given, message = MISTAKES[case]
    with pytest.raises(ValueError, match=message):
        write_map(**{"vectors": "v.parquet", "output": "m.html", **given})
    assert {path: path.read_bytes() for path in Path().rglob("*.*")} == before


def test_vectors_that_are_named_by_a_url() -> None:
    url = Path("v.parquet").resolve().as_uri()
    assert write_map(url, "m.html").points == ROWS
    with pytest.raises(ValueError, match=r"v\.parquet would overwrite the vectors"):
        write_map(url, "v.html", overwrite=True)


def test_missing_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, extra in (("matplotlib", "map"), ("pyarrow", "parquet")):
        with monkeypatch.context() as patch:
            patch.setattr(
                "importlib.util.find_spec",
                lambda asked, name=name: None if asked == name else asked,
            )
            with pytest.raises(ImportError, match=re.escape(f"{name}: {to_install(extra)}")):
                write_map("v.parquet", "m.html", picture="m.png")
    monkeypatch.setattr(projection, "_installed", lambda name: False)
    with pytest.raises(ImportError, match=re.escape(f"scikit-learn: {to_install('map')}")):
        write_map("v.parquet", "m.html")


@pytest.mark.parametrize("ending", [KeyboardInterrupt, SystemExit, OSError])
def test_nothing_is_left_of_a_map_that_was_not_finished(
    ending: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last file fails: neither the first ones nor anything temporary stays."""

    def fail(*args: object, **kwargs: object) -> None:
        raise ending("stop")

    write_map("v.parquet", "m.html")
    Path("m.html").unlink()
    before = Path("m.parquet").read_bytes()
    monkeypatch.setattr("nomicbert.bulk.map.page.page", fail)
    with pytest.raises(ending, match="stop"):
        write_map("v.parquet", "m.html", picture="m.png", overwrite=True)
    assert sorted(os.listdir()) == ["m.parquet", "v.parquet"]
    assert Path("m.parquet").read_bytes() == before


def test_steps_are_reported() -> None:
    steps: list[tuple[str, int, int]] = []
    write_map("v.parquet", "m.html", step=lambda *step: steps.append(step))
    assert steps == [("reading", 0, 1), ("drawing", 0, 1), ("drawing", 1, 1)]
