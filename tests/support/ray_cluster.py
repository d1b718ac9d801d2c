"""A small Ray cluster on loopback, rows that come slowly, and the workers on it.

No torch here: each process of the cluster that reads rows imports this module.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from ray.data import Dataset

ROOT = Path(__file__).resolve().parents[2]
# Ray takes 127.0.0.1 as a wish for the machine's address in its network; this is loopback too.
LOOPBACK = "127.0.0.2"
# Processors are only counted by Ray: with these two workers, a reader and the checkpoint's filter
# fit on any machine.
CPUS = 4
WORDS = ("the river", "a fox", "what is", "the name of the town", "in the north", "of the sea")
ROWS_PER_BLOCK = 25
# One for all clusters of a process: Ray reads it once.
TOKEN = secrets.token_hex(16)
# Long enough to be killed in between: seconds that each block waits before it is embedded.
WAIT = 0.15


def _environment() -> dict[str, str]:
    """Nothing leaves the machine, no file appears in the home, workers find this checkout."""
    return {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_TOKEN": TOKEN,
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else old versions warn of what new ones do
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")]),
    }


@contextmanager
def cluster(*, data: bool = True, **options: Any) -> Iterator[str]:
    """Run a cluster in this process's session, for Ray `data`; the address for other drivers."""
    import ray

    # a short name: sockets' paths are limited to some hundred characters
    folder = tempfile.mkdtemp(prefix="ray-")
    before = dict(os.environ)
    os.environ.update(_environment())
    try:
        ray.init(
            num_cpus=CPUS,
            object_store_memory=100 << 20,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            _node_ip_address=LOOPBACK,
            _temp_dir=folder,
            **options,
        )
        if data:
            quiet()
        yield ray.get_runtime_context().gcs_address
    finally:
        ray.shutdown()
        os.environ.clear()
        os.environ.update(before)
        shutil.rmtree(folder, ignore_errors=True)


def quiet() -> None:
    """No progress on the terminal."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


def write_input(folder: Path, rows: int, *, files: int = 3, text_ids: bool = False) -> pa.Table:
    """Write Parquet files of texts with ids; all rows, in the order of their ids."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = [
        " ".join(WORDS[(row * step) % 6] for step in range(1, 4 + row % 5)) for row in range(rows)
    ]
    ids = [f"id-{row:05}" for row in range(rows)] if text_ids else list(range(rows))
    table = pa.table({"id": ids, "text": texts})
    for number in range(files):
        piece = table.slice(
            number * rows // files, (number + 1) * rows // files - number * rows // files
        )
        pq.write_table(piece, folder / f"{number}.parquet")
    return table


def _wait(table: pa.Table) -> pa.Table:
    time.sleep(WAIT * table.num_rows / ROWS_PER_BLOCK)
    return table


def slow_rows(folder: Path) -> Dataset:
    """The rows of a folder, at a pace at which a test can kill what computes them."""
    import ray.data

    rows = ray.data.read_parquet(str(folder))
    return rows.map_batches(_wait, batch_format="pyarrow", batch_size=ROWS_PER_BLOCK)


def workers_of(driver: int) -> list[int]:
    """Process ids of the actors with an EmbedBatch, of the cluster that a process has started."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            title = (process / "cmdline").read_bytes()
            if title.startswith(b"ray::") and b"EmbedBatch" in title and driver in _above(process):
                found.append(int(process.name))
        except (OSError, ValueError):  # it has ended, or is no process
            continue
    return sorted(found)


def _above(process: Path) -> Iterator[int]:
    """The process ids of parents."""
    while process.name != "0":
        parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
        yield parent
        process = Path("/proc", str(parent))


def example(source: str, output: str, model: str, *, rows_per_block: int) -> list[str]:
    """The command of examples/ray_embed.py, on rows with the columns id and text."""
    program = str(ROOT / "examples" / "ray_embed.py")
    options = ["--prompt-name", "search_document", "--rows-per-block", str(rows_per_block)]
    return [sys.executable, program, source, output, "--model", model, *options]


def kill(process: int) -> None:
    """End a process at once, as the kernel does when memory is short."""
    os.kill(process, signal.SIGKILL)
