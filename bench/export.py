"""Our ONNX graphs in onnxruntime, interleaved with torch.onnx's export of transformers.

    python -m bench.export minilm nomic-v1.5 --out bench/results/export-cpu.jsonl

A model is as for `bench.throughput`: minilm has its real weights, and nomic-v1.5 its full size with
random ones. All sessions have the same options and number of threads, and end in the same vectors:

    ours, ours-q8               files of nomicbert.export.onnx
    torch.onnx                  transformers with the checkpoint's pooling, by torch's exporter
    torch.onnx-int8             the same after quantize_dynamic(QInt8, per_channel=True)
    package                     this package itself, from token ids

Every candidate takes the token ids of one padded batch. Tokens that are padding do not count. Wall
clock and the process's CPU time are both measured: on a machine with other load, CPU time and least
values are steadier. Accuracy is the cosine with this package over docstrings, for trained weights.
"""

import argparse
import itertools
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic

from bench.serve.records import table
from bench.throughput import MINILM, folder_of
from nomicbert import Embedder, export
from nomicbert.benchmark import onnx_peers
from nomicbert.benchmark.batching import padded
from nomicbert.benchmark.lines import Line, as_json, surroundings
from nomicbert.benchmark.measure import cosines, in_turns
from nomicbert.benchmark.peers import Setting
from nomicbert.cli.demo import packaged_weights
from nomicbert.loading.folder import read_folder
from nomicbert.modeling.packing import pack
from nomicbert.text.corpus import read_passages
from nomicbert.text.tokenizer import Tokenizer

CPU = torch.device("cpu")
TORCH = "torch.onnx"
QUERY = "how do I read a large file line by line"
ACCURACY_TEXTS, BATCH = 200, 20
# Timed calls of a round take about this long, or are one.
SECONDS, MOST_CALLS = 0.2, 50
Ids = list[list[int]]
Vectors = Callable[[Ids], np.ndarray]
# Arguments of quantize_dynamic, for the accuracy of its forms.
FORMS: dict[str, dict[str, Any]] = {
    "int8": {"weight_type": QuantType.QInt8, "per_channel": True},
    "int8-7-bit": {"weight_type": QuantType.QInt8, "per_channel": True, "reduce_range": True},
    "uint8": {"weight_type": QuantType.QUInt8, "per_channel": True},
}


@dataclass(frozen=True)
class File:
    """An ONNX file, and how it was made.

    Attributes:
        path: of the graph.
        seconds: to make it; None if it was there.
    """

    path: Path
    seconds: float | None

    @property
    def size(self) -> int:
        """Bytes, external data included."""
        return sum(path.stat().st_size for path in self.path.parent.glob(f"{self.path.name}*"))


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.export", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--out", type=Path, metavar="FILE", help="append lines of JSON")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--scratch", type=Path, default=Path("build/export"), metavar="FOLDER")
    parser.add_argument("--no-accuracy", action="store_true")
    return parser.parse_args(arguments)


def timed(make: Callable[[], object]) -> float:
    started = time.perf_counter()
    make()
    return time.perf_counter() - started


def files_of(folder: Path, setting: Setting) -> dict[str, File]:
    """The files of both exporters; torch's are kept in the cache, ours are always made anew."""
    found = {}
    target = setting.cache / "ours"
    for name, dtype, file in (
        ("ours", "fp32", "model.onnx"),
        ("ours-q8", "q8", "model_quantized.onnx"),
    ):
        path = target.with_name(f"{target.name}-{dtype}")
        seconds = timed(lambda: export.onnx(folder, path, dtypes=(dtype,), overwrite=True))  # noqa: B023
        found[name] = File(path / "onnx" / file, seconds)
    setting.loaded.clear()
    paths: list[Path] = []
    seconds = timed(lambda: paths.append(onnx_peers.exported(setting)))
    found[TORCH] = File(paths[0], seconds if setting.loaded.pop("made an export", False) else None)
    setting.loaded.clear()
    seconds = timed(lambda: paths.append(onnx_peers.quantized(setting)))
    made = setting.loaded.pop("made an export", False)
    found[f"{TORCH}-int8"] = File(paths[1], seconds if made else None)
    return found


class Session:
    """A file in onnxruntime, from token ids to vectors."""

    def __init__(self, path: Path, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        # spinning threads would count as CPU time, and slow down the next candidate
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
        self.inputs = {given.name for given in self.session.get_inputs()}
        self.output = [self.session.get_outputs()[-1].name]

    def __call__(self, ids: Ids) -> np.ndarray:
        rows, mask = padded(ids, 0)
        feeds = {"input_ids": rows, "attention_mask": mask, "token_type_ids": np.zeros_like(rows)}
        given = {name: feeds[name] for name in self.inputs}
        found: np.ndarray = self.session.run(self.output, given)[0]
        return found


def package(folder: Path) -> Vectors:
    embedder = Embedder(folder)

    @torch.inference_mode()
    def vectors(ids: Ids) -> np.ndarray:
        return embedder.embedding_model(pack(ids)).numpy()

    return vectors


def workloads(setting: Setting) -> dict[str, Ids]:
    """Token ids of each case; by the uncased vocabulary that all these models share."""
    tokenizer = Tokenizer.from_settings(read_folder(packaged_weights()).tokenizer, 30522)
    passages = [passage.text for passage in read_passages()]

    def ids(texts: list[str], most: int) -> Ids:
        return tokenizer.encode(texts, most)[0]

    def spaced(count: int) -> list[str]:
        return passages[:: len(passages) // count][:count]

    return {
        "query": ids([QUERY], 64),
        "docstrings-8": ids(spaced(8), 256),
        "docstrings-32": ids(spaced(32), 256),
        "fixed-512": ids([" ".join(passages[:60])], 512),
        "accuracy": ids(spaced(ACCURACY_TEXTS), 256),
    }


def both_clocks() -> Any:
    """Wall clock and CPU time of the process; a difference of two is an array."""
    return np.array([time.perf_counter(), time.process_time()])


def measure(
    candidates: Mapping[str, Vectors], ids: Ids, rounds: int
) -> dict[str, tuple[list[float], list[float]]]:
    """Name -> wall seconds and CPU seconds of each round, of one call."""
    works = {name: (lambda vectors=vectors: vectors(ids)) for name, vectors in candidates.items()}
    for work in works.values():
        work()
    slowest = max(min(timed(work) for _ in range(3)) for work in works.values())
    calls = max(1, min(MOST_CALLS, round(SECONDS / slowest)))
    found = {}
    for name, pairs in in_turns(works, rounds, both_clocks, calls).items():
        per_round = [np.mean(pairs[i : i + calls], axis=0) for i in range(0, len(pairs), calls)]
        found[name] = tuple([float(pair[i]) for pair in per_round] for i in (0, 1))
    return found


def speed_lines(candidates: Mapping[str, Vectors], name: str, ids: Ids, rounds: int) -> list[Line]:
    before = os.getloadavg()[0]
    truth = candidates["package"](ids)
    times = measure(candidates, ids, rounds)
    tokens, rows = sum(map(len, ids)), len(ids) * max(map(len, ids))
    found = []
    for peer, (wall, cpu) in times.items():
        _, least = cosines(candidates[peer](ids), truth)
        found.append(
            {
                "what": "speed",
                "case": name,
                "peer": peer,
                "texts": len(ids),
                "tokens": tokens,
                "padded_tokens": rows,
                "rounds": rounds,
                "median_ms": 1e3 * statistics.median(wall),
                "least_ms": 1e3 * min(wall),
                "median_cpu_ms": 1e3 * statistics.median(cpu),
                "least_cpu_ms": 1e3 * min(cpu),
                "tokens_per_cpu_second": tokens / statistics.median(cpu),
                # above 1: faster than torch.onnx's graph in the same round
                "ratio": statistics.median(
                    a / b for a, b in zip(times[TORCH][0], wall, strict=True)
                ),
                "cpu_ratio": statistics.median(
                    a / b for a, b in zip(times[TORCH][1], cpu, strict=True)
                ),
                "least_cosine": least,
                "load": before,
            }
        )
    return found


def in_batches(vectors: Vectors, ids: Ids) -> np.ndarray:
    """Vectors of many texts, padded in batches in their order, as a user would."""
    parts = (ids[start : start + BATCH] for start in range(0, len(ids), BATCH))
    return np.concatenate([vectors(part) for part in parts])


def accuracy_lines(files: Mapping[str, File], setting: Setting, ids: Ids) -> list[Line]:
    """Cosine of every 8-bit form with this package in float32."""
    truth = in_batches(package(setting.folder), ids)
    forms = dict(files)
    for base, (form, arguments) in itertools.product(("ours", TORCH), FORMS.items()):
        path = setting.cache / f"{base}-{form}.onnx"
        with onnx_peers.without_chatter():
            seconds = timed(lambda: quantize_dynamic(files[base].path, path, **arguments))  # noqa: B023
        forms[f"{base}-{form}"] = File(path, seconds)
    found = []
    for name, file in forms.items():
        mean, least = cosines(in_batches(Session(file.path, setting.threads), ids), truth)
        found.append(
            {"what": "accuracy", "peer": name, "texts": len(ids), "mean_cosine": mean}
            | {"least_cosine": least, "bytes": file.size}
        )
    return found


def of_model(model: str, options: argparse.Namespace) -> list[Line]:
    """All lines of one model."""
    folder = folder_of(model, options.scratch)
    encoder = read_folder(folder).encoder
    setting = Setting(folder, encoder, CPU, options.threads, options.scratch / Path(model).name, [])
    cases = workloads(setting)
    files = files_of(folder, setting)
    lines: list[Line] = [
        {"what": "file", "peer": name, "bytes": file.size, "seconds": file.seconds}
        for name, file in files.items()
    ]
    texts = cases.pop("accuracy")
    if model == MINILM and not options.no_accuracy:
        lines += accuracy_lines(files, setting, texts)
    candidates: dict[str, Vectors] = {
        name: Session(file.path, options.threads) for name, file in files.items()
    }
    candidates["package"] = package(folder)
    for name, ids in cases.items():
        lines += speed_lines(candidates, name, ids, options.rounds)
        print(shown(lines[-len(candidates) :]), file=sys.stderr)
    where = surroundings(CPU)
    where["machine"]["threads"] = options.threads
    return [{"model": Path(model).name, **line, **where} for line in lines]


def shown(lines: Sequence[Line]) -> str:
    heads = ("case", "peer", "tokens", "least_ms", "median_ms", "median_cpu_ms", "cpu_ratio")
    return table(heads, [[line[head] for head in heads] for line in lines])


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    for model in options.models:
        lines = of_model(model, options)
        if options.out:
            with options.out.open("a", encoding="utf-8") as file:
                file.write(as_json(lines))


if __name__ == "__main__":
    main()
