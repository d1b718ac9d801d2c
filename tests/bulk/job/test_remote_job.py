"""Jobs from S3 to S3."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from nomicbert.bulk.job import remote_lock
from nomicbert.bulk.job.check import check_folder
from nomicbert.bulk.job.folder import open_folder
from tests.bulk.job.standin import embed
from tests.bulk.job.store_deaths import Stored, die
from tests.support.s3 import S3Server


@pytest.fixture
def job(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stored:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{s3.address}")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setattr(remote_lock, "PAUSE", 0)
    return Stored(s3, tmp_path)


@pytest.mark.slow
def test_deaths(job: Stored, seed: int) -> None:
    undisturbed = job.run("out")
    assert undisturbed.returncode == 0, undisturbed.stderr
    assert job.wrong("out") == []
    for at in random.Random(seed).sample(range(int(undisturbed.stdout)), 3):
        assert die(job, at) == []


def test_the_ways_of_a_job(s3: S3Server, job: Stored, tmp_path: Path) -> None:
    source = f"s3://{job.bucket}/texts/"
    for name, count in (("a.txt", 25), ("b/c d%20.txt", 8), ("_ignored.txt", 1)):
        text = "".join(f"{name} {n}\n" for n in range(count))
        s3.put(f"{job.bucket}/texts/{name}", text.encode())
    output = f"s3://{job.bucket}/vectors/"
    report = embed([source], output, part_rows=10)
    assert (report.rows, report.made, report.parts, report.folder) == (33, 33, 4, output)
    assert embed([f"s3://{job.bucket}/texts/**"], output, part_rows=10).made == 0
    folder = open_folder(output)
    names = [f"part-00000-{number:06}.parquet" for number in range(4)]
    assert sorted(folder.names()) == ["_manifest.json", *names]
    assert check_folder(output).problems == ()

    # a part is lost, another one is cut short
    folder.remove(names[1])
    assert embed([source], output, part_rows=10).made == 10
    whole = s3.get(f"{job.bucket}/vectors/{names[2]}")
    s3.put(f"{job.bucket}/vectors/{names[2]}", whole[:-100])
    with pytest.raises(ValueError, match=rf"{names[2]} is damaged .*: delete it"):
        embed([source], output, part_rows=10)
    folder.remove(names[2])
    assert embed([source], output, part_rows=10).made == 10
    assert check_folder(output).problems == ()

    # what a job refuses
    with folder.lock(".lock"), pytest.raises(ValueError, match=r"another process is writing"):
        embed([source], output, part_rows=10)
    s3.put(f"{job.bucket}/texts/a.txt", b"another\n")
    with pytest.raises(ValueError, match=r"a\.txt has changed"):
        embed([source], output, part_rows=10)
    s3.put(f"{job.bucket}/vectors/foreign.parquet", b"x")
    with pytest.raises(ValueError, match=r"foreign\.parquet, which is no part"):
        embed([source], output, part_rows=10, restart=True)
    folder.remove("foreign.parquet")
    assert embed([source], output, part_rows=10, restart=True).made == 9
    assert sorted(folder.names()) == ["_manifest.json", names[0]]


def test_tasks(s3: S3Server, job: Stored) -> None:
    source = f"s3://{job.bucket}/texts/"
    for name in "abc":
        text = "".join(f"{name} {n}\n" for n in range(20))
        s3.put(f"{job.bucket}/texts/{name}.txt", text.encode())
    output = f"s3://{job.bucket}/vectors/"
    made = [embed([source], output, part_rows=10, task=(task, 3)).made for task in (1, 2, 3)]
    assert sum(made) == 60
    assert all(made)
    assert check_folder(output).problems == ()


def test_inputs_and_output_are_apart(s3: S3Server, job: Stored) -> None:
    s3.put(f"{job.bucket}/texts/a.txt", b"a\n")
    for options in ("", s3.options):
        source = f"s3://{job.bucket}/texts/{options}"
        with pytest.raises(ValueError, match="is inside the input"):
            embed([source], f"s3://{job.bucket}/texts/vectors/{options}")
        with pytest.raises(ValueError, match="is inside the output"):
            embed([source], f"s3://{job.bucket}/{options}")
        with pytest.raises(ValueError, match="all inputs are inside the output"):
            embed([f"s3://{job.bucket}/texts/*{options}"], f"s3://{job.bucket}/texts/{options}")
