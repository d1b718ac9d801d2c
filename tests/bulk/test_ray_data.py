"""embed_dataset on a cluster of this machine: bits, nulls, threads, processes that are killed."""

from __future__ import annotations

import importlib.util
import os
import runpy
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from nomicbert import Embedder
from nomicbert.bulk.ray_data import EmbedBatch, embed_dataset
from tests.conftest import HAS_CUDA
from tests.support.checkpoints import build_checkpoint
from tests.support.clients import same_bits
from tests.support.ray_cluster import (
    CPUS,
    ROWS_PER_BLOCK,
    cluster,
    example,
    kill,
    slow_rows,
    workers_of,
    write_input,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install '.[ray]'"
    ),
    # its settings warn of each other
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context"),
    # a finished job has no rows for its actors
    pytest.mark.filterwarnings("ignore:The minimum number of concurrent actors:UserWarning"),
]
DOCUMENT = {"prompt_name": "search_document"}
PATIENCE = 600.0  # for a machine that is busy with other things


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_checkpoint(tmp_path_factory.mktemp("m"), "nomic-v1.5", num_hidden_layers=1)


@pytest.fixture(scope="module")
def embedder(folder: Path) -> Embedder:
    return Embedder(folder)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with cluster(num_gpus=1) as found:  # a GPU that Ray believes in
        yield found


def sorted_rows(output: Path) -> pa.Table:
    return pq.read_table(output).sort_by("id")


def check(output: Path, wanted: pa.Table, embedder: Embedder) -> None:
    """Each row once, unchanged, with the vector of one process."""
    found = sorted_rows(output)
    assert found["id"].to_pylist() == wanted["id"].to_pylist()
    assert found.select(wanted.column_names).equals(wanted)
    vectors = np.stack(found["embedding"].to_numpy())
    assert same_bits(vectors, embedder.encode(wanted["text"].to_pylist(), **DOCUMENT))


def until(happened: Callable[[], Any], what: str) -> Any:
    end = time.monotonic() + PATIENCE
    while not (found := happened()):
        assert time.monotonic() < end, what
        time.sleep(0.05)
    return found


def count_files(folder: Path) -> int:
    return len([*folder.glob("*.parquet")]) if folder.is_dir() else 0


def test_workers_die_and_every_row_comes_once(
    address: str, folder: Path, embedder: Embedder, tmp_path: Path
) -> None:
    wanted = write_input(tmp_path / "in", 400)
    rows = slow_rows(tmp_path / "in")
    rows = embed_dataset(rows, folder, workers=2, rows_per_block=ROWS_PER_BLOCK, **DOCUMENT)
    failed: list[BaseException] = []

    def write() -> None:
        try:
            rows.write_parquet(str(tmp_path / "out"))
        except BaseException as error:
            failed.append(error)

    job = threading.Thread(target=write)
    job.start()
    killed: set[int] = set()
    for _ in range(2):
        before = count_files(tmp_path / "out")
        until(lambda b=before: count_files(tmp_path / "out") > b or not job.is_alive(), "no rows")
        victims = until(lambda: set(workers_of(os.getpid())) - killed, "no workers")
        kill(min(victims))
        killed.add(min(victims))
        assert job.is_alive(), "the job ended before a worker could be killed"
    job.join(PATIENCE)
    assert not job.is_alive()
    assert not failed
    check(tmp_path / "out", wanted, embedder)
    sizes = [pq.read_metadata(path).num_rows for path in (tmp_path / "out").glob("*.parquet")]
    assert ROWS_PER_BLOCK <= max(sizes) < 2 * ROWS_PER_BLOCK


def test_the_example_is_killed_and_goes_on(
    address: str, folder: Path, embedder: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`python -m tests.bulk.ray_kills` kills more often."""
    wanted = write_input(tmp_path / "documents", 160, text_ids=True)
    (tmp_path / "model").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    command = example("documents", "vectors", "model", rows_per_block=2)
    environment = {**os.environ, "RAY_ADDRESS": address}
    driver = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    output = tmp_path / "vectors"
    until(lambda: count_files(output) or driver.poll() is not None, "no rows")
    assert driver.poll() is None, driver.communicate()[1].decode()
    kill(driver.pid)
    driver.communicate()
    assert 0 < count_files(output) < 80
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    check(output, wanted, embedder)
    monkeypatch.setattr(sys, "argv", command[1:])
    runpy.run_path(command[1], run_name="__main__")  # nothing is left to do
    check(output, wanted, embedder)


def test_nulls_and_threads(address: str, folder: Path, embedder: Embedder, tmp_path: Path) -> None:
    import ray.data
    from ray.exceptions import RayError

    texts = [None if row % 10 == 3 else f"fox {row}" for row in range(60)]
    table = pa.table({"id": range(60), "text": texts})
    rows = embed_dataset(
        ray.data.from_arrow(table), folder, workers=1, on_null="null", rows_per_block=16, **DOCUMENT
    )
    rows.write_parquet(str(tmp_path / "out"))
    found = sorted_rows(tmp_path / "out")
    assert found.schema.field("embedding").type == pa.list_(pa.float32())
    assert found["embedding"].is_null().to_pylist() == [text is None for text in texts]
    wanted = embedder.encode([text for text in texts if text is not None], **DOCUMENT)
    assert same_bits(np.stack(found["embedding"].drop_null().to_numpy()), wanted)

    rows = embed_dataset(ray.data.from_arrow(table), folder, workers=1)
    with pytest.raises(RayError, match=r"row 3 of a block \(\{'id': 3\}\): the text in column "):
        rows.materialize()

    class Threads(EmbedBatch):
        def __call__(self, table: pa.Table) -> pa.Table:
            threads = f"{torch.get_num_threads()} {os.environ['RAYON_NUM_THREADS']}"
            return table.append_column("threads", [[threads] * len(table)])

    rows = ray.data.from_arrow(table.slice(0, 2)).map_batches(
        Threads,
        fn_constructor_args=(str(folder),),
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=1),
        num_cpus=3,
    )
    # a number that is set for all of the machine stays
    tokenizer = os.environ.get("RAYON_NUM_THREADS", "3")
    assert {row["threads"] for row in rows.take_all()} == {f"3 {tokenizer}"}


@pytest.mark.skipif(HAS_CUDA, reason="here the GPU is there")
def test_a_worker_with_a_gpu_computes_there(address: str, folder: Path) -> None:
    import ray.data
    from ray.exceptions import RayError

    rows = embed_dataset(ray.data.from_items([{"text": "a"}]), folder, workers=1, num_gpus=1)
    with pytest.raises(RayError, match="this torch cannot use the device 'cuda'"):
        rows.materialize()


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        (
            {"workers": CPUS},
            ValueError,
            "would hold 4 of the cluster's 4 CPUs, but 1 must stay free: .* At most 3 such workers",
        ),
        ({"workers": 2, "num_cpus": 2}, ValueError, "At most 1 such workers fit. If the cluster"),
        ({"workers": 8, "cluster": {"CPU": 8}}, ValueError, "8 of the cluster's 8 CPUs"),
        ({"workers": 2, "num_gpus": 1}, ValueError, "need 2 GPUs, but the cluster has 1"),
        ({"workers": 0}, ValueError, "workers must be at least 1, not 0"),
        ({"num_cpus": 0.5}, TypeError, "num_cpus must be an integer, not 0.5"),
        ({"rows_per_block": 0}, ValueError, "rows_per_block must be at least 1"),
        ({"device": "cuda"}, ValueError, "leave device out: num_gpus decides"),
        ({"promt": "x"}, TypeError, "embed_dataset has no keyword 'promt': did you mean 'prompt'"),
        ({"precision": "uint8"}, ValueError, "needs ranges"),
        ({"precision": "int4"}, ValueError, "precision must be one of"),
        ({"on_null": "skip"}, ValueError, "on_null must be one of"),
        ({"column": "body"}, ValueError, "there is no column 'body', only 'id', 'text', 'page'"),
        ({"column": "page"}, ValueError, "column 'page' has the type int64, not strings"),
        ({"output": "page"}, ValueError, "there is a column 'page' already"),
        ({"checkpoint": "c"}, ValueError, "give both checkpoint and id_column"),
        ({"id_column": "id"}, ValueError, "give both checkpoint and id_column"),
        ({"checkpoint": "c", "id_column": "key"}, ValueError, "no column 'key' for the ids, only"),
        ({"checkpoint": "c", "id_column": "id"}, ValueError, "dataset from one of ray.data.read_"),
        (
            {"workers": 3, "checkpoint": "c", "id_column": "id"},
            ValueError,
            "2 must stay free: the tasks that read and write and the checkpoint's filter take one",
        ),
    ],
    ids=str,
)
def test_what_is_refused_before_anything_runs(
    keywords: dict[str, Any], error: type[Exception], message: str, address: str, folder: Path
) -> None:
    import ray.data

    rows = ray.data.from_arrow(pa.table({"id": ["a"], "text": ["fox"], "page": [1]}))
    with pytest.raises(error, match=message):
        embed_dataset(rows, folder, **{"workers": 1, **keywords})


def test_a_cluster_that_grows(address: str, folder: Path) -> None:
    import ray.data

    rows = ray.data.from_arrow(pa.table({"text": ["fox"]}))
    grown = {"CPU": 100, "GPU": 8}
    assert embed_dataset(rows, folder, workers=8, num_cpus=12, num_gpus=1, cluster=grown)


def test_jobs_of_one_dataset_have_their_own_checkpoints(
    address: str, folder: Path, tmp_path: Path
) -> None:
    import ray.data

    write_input(tmp_path / "in", 6)
    rows = ray.data.read_parquet(str(tmp_path / "in"))

    def job(checkpoint: str, **keywords: Any) -> Any:
        place = str(tmp_path / checkpoint)
        return embed_dataset(
            rows, folder, workers=1, id_column="id", checkpoint=place, **keywords
        ).context.checkpoint_config

    first, second = job("first"), job("second", matryoshka_dim=32)
    assert first.checkpoint_path == f"{tmp_path}/first/rows"
    assert second.checkpoint_path == f"{tmp_path}/second/rows"
    assert rows.context.checkpoint_config is None
    assert ray.data.DataContext.get_current().checkpoint_config is None
    with pytest.raises(ValueError, match="of another job: matryoshka_dim was null and is 32"):
        job("first", matryoshka_dim=32)

    write_input(tmp_path / "in" / "again", 2, files=1)
    rows = ray.data.read_parquet(str(tmp_path / "in"))
    with pytest.raises(ValueError, match=r"2 ids in column 'id' are not unique, [01] is there 2"):
        job("third")
    assert not (tmp_path / "third").exists()


def test_an_old_ray_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.__version__", "2.54.1")
    with pytest.raises(ImportError, match=r"needs Ray 2\.55, not 2\.54\.1: pip install"):
        embed_dataset(None, folder, workers=1)  # type: ignore[arg-type]
