"""A bulk job against `encode` on the same texts, and one job over many short texts.

    python -m bench.bulk rate --rounds 7          # interleaved slices: job, encode, job, ...
    python -m bench.bulk lines --rows 1000000     # lines of source code, at most 12 tokens each

The model is all-MiniLM-L6-v2 with its real weights, unless --model names another checkpoint. A
slice of `rate` is read from JSONL and written as Parquet, fsync included; `encode` has its texts in
memory. The line printed at the end is JSON, with the machine and the versions.
"""

import argparse
import json
import resource
import statistics
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from itertools import islice
from pathlib import Path

from bench.serve.records import surroundings
from nomicbert import Embedder
from nomicbert.bulk.embed_files import check_folder, embed_files
from nomicbert.cli.demo import packaged_weights
from nomicbert.text.corpus import read_passages

MOST_TOKENS = 12


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one of the two."""
    parser = argparse.ArgumentParser(prog="python -m bench.bulk", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("what", choices=("rate", "lines"))
    parser.add_argument("--model", default=None, metavar="FOLDER")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="slices of each")
    parser.add_argument("--texts", type=int, default=2048, metavar="N", help="texts of a slice")
    parser.add_argument("--rows", type=int, default=1_000_000, metavar="N", help="of `lines`")
    options = parser.parse_args(arguments)
    embedder = Embedder(options.model or packaged_weights())
    with tempfile.TemporaryDirectory(prefix="nomicbert-") as folder:
        if options.what == "rate":
            found = rate(embedder, Path(folder), options.rounds, options.texts)
        else:
            found = lines(embedder, Path(folder), options.rows)
    where = surroundings()
    where["versions"] |= {name: version(name) for name in ("torch", "pyarrow")}
    print(json.dumps({"what": options.what, **found, **where}))


def rate(embedder: Embedder, folder: Path, rounds: int, count: int) -> dict[str, object]:
    """Seconds of a job over those of `encode`, by interleaved slices of docstrings."""
    passages = [passage.text for passage in read_passages()]
    ratios = []
    for number in range(-1, rounds):  # the first one is a warm-up
        first = (number + 1) * count % max(1, len(passages) - count)
        texts = passages[first : first + count]
        source = folder / f"{number}.jsonl"
        source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
        seconds = {}
        for what in ("job", "encode") if number % 2 else ("encode", "job"):
            started = time.perf_counter()
            if what == "job":
                embed_files(
                    embedder, [str(source)], str(folder / f"{number}"), show_progress_bar=False
                )
            else:
                embedder.encode(texts, show_progress_bar=False)
            seconds[what] = time.perf_counter() - started
        if number >= 0:
            ratios.append(seconds["encode"] / seconds["job"])
            print(f"{seconds} rate {ratios[-1]:.3f} of encode", file=sys.stderr)
    tokens = sum(embedder.token_count(passages[:count]))
    return {
        "texts": count,
        "tokens of the first slice": tokens,
        "rounds": rounds,
        "rates of encode": [round(ratio, 4) for ratio in ratios],
        "median": round(statistics.median(ratios), 4),
    }


def lines(embedder: Embedder, folder: Path, rows: int) -> dict[str, object]:
    """One job over lines of the source code of Python and the installed packages."""
    source = folder / "lines.txt"
    with source.open("w", encoding="utf-8") as file:
        count = sum(file.write(line + "\n") > 0 for line in islice(source_lines(), rows))
    report = embed_files(
        embedder, [str(source)], str(folder / "vectors"), max_length=MOST_TOKENS, columns=["text"]
    )
    checked = check_folder(str(folder / "vectors"))
    size = sum(path.stat().st_size for path in (folder / "vectors").iterdir())
    return {
        "rows": count,
        "rows with vectors": report.rows,
        "check": str(checked),
        "tokens": report.tokens,
        "seconds": round(report.seconds, 1),
        "rows per second": round(report.made / report.seconds, 1),
        "tokens per second": round(report.tokens / report.seconds),
        "parts": report.parts,
        "bytes": size,
        "peak memory, MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def source_lines() -> Iterator[str]:
    """Lines of source code that are not blank, those of many files first seen once."""
    seen: set[int] = set()
    for place in ("stdlib", "purelib"):
        for path in sorted(Path(sysconfig.get_path(place)).rglob("*.py")):
            for line in path.read_text("utf-8", errors="replace").splitlines():
                text = " ".join(line.split())
                if len(text) > 2 and (key := hash(text)) not in seen:
                    seen.add(key)
                    yield text


if __name__ == "__main__":
    main()
