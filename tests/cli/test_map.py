"""`nomicbert map`: messages, the document, exit codes, and Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nomicbert.bulk import projection
from nomicbert.errors import to_install
from tests.support.command_line import one_line, run_cli

TEXTS = ["a tree", "a leaf", "a boat", "a ship", "</script>"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.chdir(tmp_path)
    rows = np.random.default_rng(seed).normal(size=(5, 4)).astype(np.float32)
    embedding = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), 4)
    columns = {"text": TEXTS, "kind": ["t", "t", "s", "s", "x"], "embedding": embedding}
    pq.write_table(pa.table(columns), "v.parquet")


def test_a_map_and_its_document() -> None:
    command = ["map", "v.parquet", "-o", "m.html", "--color", "kind", "--png", "m.png", "--json"]
    code, out, err = run_cli(*command)
    assert code == 0
    assert one_line(err).endswith("s: m.html, m.parquet, m.png\n")
    assert one_line(err).startswith("nomicbert: a map of 5 points, in ")
    document = json.loads(out)
    assert document | {"seconds": 0} == {
        "page": "m.html",
        "table": "m.parquet",
        "picture": "m.png",
        "points": 5,
        "rows": 5,
        "method": "tsne",
        "colored_by": "kind",
        "groups": ["t", "s", "x"],
        "seconds": 0,
    }
    places = pq.read_table("m.parquet").select(["x", "y"]).to_pydict()
    assert np.isfinite([places["x"], places["y"]]).all()


def test_a_sample_is_said() -> None:
    code, out, err = run_cli("map", "v.parquet", "-o", "m.html", "--sample", "1")
    assert (code, out) == (0, "")
    assert "a map of 1 of 5 points" in one_line(err).replace("1 of 5 point,", "1 of 5 points,")


MISTAKES: dict[str, tuple[list[str], str]] = {
    "page": (["v.parquet", "-o", "m.pdf"], "name a file that ends in .html"),
    "existing": (["v.parquet", "-o", "v.html"], "v.parquet exists: pass overwrite=True (--over"),
    "column": (["v.parquet", "-o", "m.html", "--color", "z"], "there are 'text', 'kind'"),
    "folder": (["none/", "-o", "m.html"], "cannot read none/: No such file or directory"),
    "pacmap": (["v.parquet", "-o", "m.html", "--method", "pacmap"], "PaCMAP needs 100 points"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes(case: str) -> None:
    arguments, message = MISTAKES[case]
    code, out, err = run_cli("map", *arguments)
    assert (code, out) == (2, "")
    assert message in one_line(err)
    assert os.listdir() == ["v.parquet"]


def test_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projection, "_installed", lambda name: False)
    code, _, err = run_cli("map", "v.parquet", "-o", "m.html")
    assert (code, to_install("map") in one_line(err)) == (2, True)


def test_ctrl_c_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of placing points, when the temporary files are there."""

    def interrupt(points: Any, plane: Any, step: Any) -> Any:
        assert len(os.listdir()) == 4
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(projection, "_tsne", interrupt)
    code, out, err = run_cli("map", "v.parquet", "-o", "m.html", "--png", "m.png")
    assert (code, out) == (130, "")
    assert one_line(err) == "nomicbert: interrupted\n"
    assert os.listdir() == ["v.parquet"]


def test_help_has_examples() -> None:
    code, out, _ = run_cli("map", "--help")
    assert code == 0
    assert "nomicbert map vectors/ -o map.html --color topic --png map.png" in out
