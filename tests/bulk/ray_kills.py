"""Kill examples/ray_embed.py and its workers at random; each row must be written once, exactly.

    python -m tests.bulk.ray_kills --drivers 10 --seed 7

A driver is killed at a random moment, sometimes before it has written anything, sometimes after one
of its workers was killed. The last one finishes. Takes about half a minute per driver.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from nomicbert import Embedder
from tests.support.checkpoints import build_checkpoint
from tests.support.ray_cluster import cluster, example, kill, workers_of, write_input

ROWS = 4  # of a block


def wait_for_rows(output: Path, driver: subprocess.Popen[bytes]) -> None:
    """Until a file more is there, or the driver has ended."""
    before = len([*output.glob("*.parquet")])
    while len([*output.glob("*.parquet")]) <= before and driver.poll() is None:
        time.sleep(0.02)


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--drivers", type=int, default=10, help="drivers to kill")
    parser.add_argument("--rows", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name, cluster() as address:
        folder = Path(name)
        model = build_checkpoint(folder / "model", "nomic-v1.5", num_hidden_layers=1)
        wanted = write_input(folder / "in", arguments.rows, text_ids=bool(arguments.seed % 2))
        output = folder / "out"
        command = example(str(folder / "in"), str(output), str(model), rows_per_block=ROWS)
        os.environ["RAY_ADDRESS"] = address
        workers = 0
        for number in range(arguments.drivers + 1):
            last = number == arguments.drivers
            driver = subprocess.Popen(command)
            if last or chance.random() < 0.8:
                wait_for_rows(output, driver)
            else:
                time.sleep(20 * chance.random())
            living = workers_of(os.getpid())
            if living and (last or chance.random() < 0.7):
                kill(chance.choice(living))
                workers += 1
            if last:
                break
            time.sleep(2 * chance.random())
            if driver.poll() is not None:
                sys.exit("the job has ended before all drivers were killed: give more --rows")
            kill(driver.pid)
            driver.wait()
            files = len([*output.glob("*.parquet")])
            say(f"killed: {number + 1} drivers, {workers} workers; {files} files")
        if driver.wait() != 0:
            sys.exit("the last driver failed")
        found = pq.read_table(output).sort_by("id")
        assert found["id"].to_pylist() == wanted["id"].to_pylist()
        assert found.select(wanted.column_names).equals(wanted)
        texts = wanted["text"].to_pylist()
        vectors = Embedder(model).encode(texts, prompt_name="search_document")
        assert np.array_equal(np.stack(found["embedding"].to_numpy()), vectors)
        blocks = -(-arguments.rows // ROWS)
        say(f"{len(found)} rows of {blocks} blocks, once each, with the bits of one process")


if __name__ == "__main__":
    main()
