"""Embed a folder of Parquet files with Ray Data: on this machine, or on the cluster of RAY_ADDRESS.

    python examples/ray_embed.py documents vectors --model nomic-ai/nomic-embed-text-v1.5

Both folders may be URLs. The rows have a text and an id that no other row has. A job that was
killed goes on with the same command: its checkpoint is the folder vectors.checkpoint.
"""

import argparse
from pathlib import Path

import ray

from nomicbert.bulk.ray_data import embed_dataset


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Parquet files of texts -> of vectors, with Ray.")
    parser.add_argument("input", help="folder or URL of Parquet files")
    parser.add_argument("output", help="folder or URL; rows come in any order")
    parser.add_argument("--model", default="nomic-ai/nomic-embed-text-v1.5")
    parser.add_argument("--revision", help="commit of the model, so that it stays the same")
    parser.add_argument("--column", default="text", help="of the texts")
    parser.add_argument("--id", default="id", help="column of the ids")
    parser.add_argument("--prompt-name", help="such as search_document")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--num-cpus", type=int, default=1, help="of each worker")
    parser.add_argument("--num-gpus", type=float, default=0, help="of each worker")
    parser.add_argument("--rows-per-block", type=int, default=16_384)
    return parser.parse_args()


def located(place: str) -> str:
    """A URL, or an absolute path: Ray's workers have another current folder."""
    return place.rstrip("/") if "://" in place else str(Path(place).resolve())


def main() -> None:
    arguments = parse()
    source, output = located(arguments.input), located(arguments.output)
    rows = embed_dataset(
        ray.data.read_parquet(source),
        arguments.model,
        workers=arguments.workers,
        num_cpus=arguments.num_cpus,
        num_gpus=arguments.num_gpus,
        column=arguments.column,
        id_column=arguments.id,
        checkpoint=f"{output}.checkpoint",
        rows_per_block=arguments.rows_per_block,
        revision=arguments.revision,
        prompt_name=arguments.prompt_name,
    )
    rows.write_parquet(output, compression="zstd")


if __name__ == "__main__":
    main()
