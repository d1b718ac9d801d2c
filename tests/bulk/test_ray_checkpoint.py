"""The settings next to a checkpoint of Ray: kept once, compared later, no secret in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from nomicbert.bulk import ray_checkpoint

JOB = {
    "model": "nomic-ai/nomic-embed-text-v1.5",
    "column": "text",
    "revision": "abc",
    "dtype": torch.float32,
    "precision": "int8",
    "ranges": np.array([[0, 1], [2, 3]], "float32"),
    "prompt_name": None,
    "token": "hf_secret",
    "batch_tokens": 100,
}


def open_checkpoint(place: str, job: dict[str, Any]) -> str:
    return ray_checkpoint.open_checkpoint(place, job, lambda: None)


def test_it_begins_and_goes_on(tmp_path: Path) -> None:
    place = tmp_path / "deep" / "checkpoint"
    assert open_checkpoint(str(place), JOB) == f"{place}/rows"
    kept = (place / "job.json").read_text("utf-8")
    settings = json.loads(kept)
    assert settings.keys() == {
        "nomicbert", "model", "column", "revision", "dtype", "precision", "ranges",
    }  # fmt: skip
    assert settings["dtype"] == "torch.float32"
    assert settings["ranges"].startswith("sha256 ")
    (place / "rows").mkdir()
    # what no value depends on may change; a URL is the same place
    again = {**JOB, "token": True, "batch_tokens": None, "ranges": JOB["ranges"].astype("float64")}
    assert open_checkpoint(f"file://{place}/", again) == f"file://{place}/rows"
    assert (place / "job.json").read_text("utf-8") == kept
    assert not (place / "job.json.tmp").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "./other"}, 'model was "nomic-ai/nomic-embed-text-v1.5" and is "./other"'),
        ({"revision": None}, 'revision was "abc" and is null'),
        ({"prompt_name": "x"}, 'prompt_name was null and is "x"'),
        ({"ranges": np.array([[0, 1], [2, 4]])}, "ranges was"),
        ({"nomicbert": "9.9"}, 'nomicbert was ".*" and is "9.9"'),
    ],
    ids=str,
)
def test_another_job_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    open_checkpoint(str(tmp_path / "c"), JOB)
    with pytest.raises(ValueError, match=f"is of another job: {message}") as refused:
        open_checkpoint(str(tmp_path / "c"), {**JOB, **change})
    assert "a new checkpoint and a new output folder" in str(refused.value)


def test_folders_that_are_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "part.parquet").write_bytes(b"")
    with pytest.raises(ValueError, match="holds files of something else"):
        open_checkpoint(str(tmp_path / "other"), JOB)
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "job.json").write_text('{"model": ')
    with pytest.raises(ValueError, match=r"cut: job.json is damaged \(Expecting value"):
        open_checkpoint(str(tmp_path / "cut"), JOB)
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "job.json.tmp").write_text("{")  # a driver died here
    assert open_checkpoint(str(tmp_path / "begun"), JOB)
    with pytest.raises(ValueError, match=r"checkpoint ftp://host/c: .*ftp"):
        open_checkpoint("ftp://host/c", JOB)
    with pytest.raises(ValueError, match="Ray takes no options in it; set AWS_ENDPOINT_URL"):
        open_checkpoint("s3://bucket/c?region=eu-west-1", JOB)


def test_a_check_that_fails_leaves_no_trace_and_is_made_once(tmp_path: Path) -> None:
    def check() -> None:
        raise ValueError("id 3 twice")

    with pytest.raises(ValueError, match="id 3 twice"):
        ray_checkpoint.open_checkpoint(str(tmp_path / "c"), JOB, check)
    assert [*tmp_path.iterdir()] == []
    open_checkpoint(str(tmp_path / "c"), JOB)
    assert ray_checkpoint.open_checkpoint(str(tmp_path / "c"), JOB, check)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([1, 2, 3, 2], "1 ids in column 'id' are not unique, 2 is there 2 times"),
        (["a", "b", None, "c"], "1 of 4 ids in column 'id' are null"),
        ([0.5, 1.5, 2.5, 3.5], "must be whole numbers or strings, not double"),
        ([4, 3, 2, 1], None),
        (["a", "b", "c", "d"], None),
    ],
)
def test_ids_are_checked(ids: list[Any], message: str | None) -> None:
    table = pa.table({"id": ids})
    rows = [table.slice(0, 2), table.slice(2)]
    if message is None:
        ray_checkpoint.check_ids(rows, "id")
        return
    with pytest.raises(ValueError, match=message):
        ray_checkpoint.check_ids(rows, "id")


def test_no_rows_have_no_ids() -> None:
    ray_checkpoint.check_ids([], "id")
