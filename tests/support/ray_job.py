"""A job on a Ray cluster that can be killed; as a program, its driver.

`python -m tests.support.ray_job ADDRESS MODEL INPUT OUTPUT CHECKPOINT`
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pyarrow as pa
import torch

from nomicbert.bulk.ray_data import EmbedBatch, embed_dataset
from tests.support.ray_cluster import ROWS_PER_BLOCK, quiet, slow_rows


class Threads(EmbedBatch):
    """Also tells the threads that it computes with."""

    def __call__(self, table: pa.Table) -> pa.Table:
        threads = f"{torch.get_num_threads()} {os.environ['RAYON_NUM_THREADS']}"
        return super().__call__(table).append_column("threads", [[threads] * len(table)])


def embed(model: str, source: Path, output: Path, checkpoint: Path) -> None:
    """The job: slow, and with a checkpoint."""
    rows = embed_dataset(
        slow_rows(source),
        model,
        workers=1,
        id_column="id",
        checkpoint=str(checkpoint),
        rows_per_block=ROWS_PER_BLOCK,
        prompt_name="search_document",
    )
    rows.write_parquet(str(output))


def main() -> None:
    """Embed a folder with a checkpoint, on a cluster that runs already."""
    import ray

    address, model, *places = sys.argv[1:]
    ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    quiet()
    embed(model, *map(Path, places))


if __name__ == "__main__":
    main()
