"""Peak memory of a job without a model: it must not depend on the number of rows.

    python -m tests.bulk.job.memory --rows 1000000

The input is a text file; the encoder is replaced. A figure that grows from 1 to 10 million rows by
more than 5 % is a leak.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from tests.bulk.job.standin import Hashes, Window, embed

WINDOW = 4096


class Lengths(Hashes):
    """Vectors that cost nothing: the lengths of the texts."""

    def _window(self, texts: list[str]) -> Window:
        lengths = [len(text) for text in texts]
        vectors = np.empty((len(texts), self.empty.shape[1]), np.float32)
        vectors[:] = np.array(lengths)[:, None]
        return Window(vectors, lengths, [])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument(
        "--rejected", type=int, default=0, metavar="N", help="every Nth row, if not 0"
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        source = Path(home, "texts.jsonl")
        with source.open("w") as file:
            for row in range(given.rows):
                bad = given.rejected and row % given.rejected == 0
                file.write(
                    "{}\n" if bad else f'{{"id": {row}, "text": "some text of row {row}"}}\n'
                )
        started = time.monotonic()
        encoder: Any = Lengths(WINDOW, width=given.width)
        report = embed(str(source), Path(home, "out"), encoder, on_error="skip")
        seconds = time.monotonic() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    sys.stdout.write(
        f"{report.rows:,} rows, {report.rejected:,} rejected, {report.parts} parts: peak "
        f"{peak:.0f} MiB, {seconds:.0f} s\n"
    )


if __name__ == "__main__":
    main()
