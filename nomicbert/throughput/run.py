"""The whole benchmark of a checkpoint: a dtype's peers are loaded, measured and let go in turn."""

import gc
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from nomicbert.runtime.memory import keep_freed_memory
from nomicbert.throughput.group import Group, Step
from nomicbert.throughput.lines import Line
from nomicbert.throughput.peers import DTYPES, Setting, choose
from nomicbert.throughput.plan import Checkpoint, Options
from nomicbert.throughput.workloads import NAMES

# What scales of activations are measured on: as many texts of each kind, of another seed.
SAMPLE_CASES = ("queries", "passages", "fixed-512")
SAMPLE_TEXTS, SAMPLE_TOKENS, SAMPLE_SEED = 16, 8192, 1


def check(options: Options) -> None:
    """Refuse what cannot be measured.

    Raises: ValueError: an unknown case, dtype or peer; a dtype that nobody has on the device.
    """
    for name, known, given in (
        ("case", NAMES, options.cases),
        ("dtype", DTYPES, options.dtypes),
    ):
        if unknown := [value for value in given if value not in known]:
            raise ValueError(f"unknown {name} {unknown[0]!r}: it must be one of {', '.join(known)}")
    for dtype in options.dtypes:
        if not choose(options.families, [dtype], options.device, options.slow):
            raise ValueError(f"nobody computes in {dtype} on {options.device.type}: choose another")


def run(checkpoint: Checkpoint, options: Options, step: Step = lambda what: None) -> Iterator[Line]:
    """Measure, and yield a line for each case and peer as soon as its case is done.

    Peers that cannot take part have lines too, which say why. torch's number of threads is set and
    set back.

    Args:
        checkpoint: what is computed.
        options: what is measured.
        step: told what is done next.

    Raises: ValueError: an unknown case, dtype or peer.
    """
    check(options)
    threads = torch.get_num_threads()
    # it holds for the process, and so for all who take turns in it: before any of them is loaded
    keep_freed_memory(options.device)
    torch.set_num_threads(options.threads)
    try:
        if options.cache is not None:
            options.cache.mkdir(parents=True, exist_ok=True)
            yield from _groups(checkpoint, options, options.cache, step)
        else:
            with tempfile.TemporaryDirectory(prefix="nomicbert-bench-") as folder:
                yield from _groups(checkpoint, options, Path(folder), step)
    finally:
        torch.set_num_threads(threads)


def _groups(checkpoint: Checkpoint, options: Options, cache: Path, step: Step) -> Iterator[Line]:
    latency = [name for name in options.cases if options.together and name.startswith("latency-")]
    others = [name for name in options.cases if name not in latency]
    groups = [(dtype, [dtype], others) for dtype in options.dtypes if others]
    groups += [("all", list(options.dtypes), latency)] if latency else []
    sample = _sample(checkpoint, options)
    for group, dtypes, cases in groups:
        setting = Setting(
            checkpoint.folder, checkpoint.encoder, options.device, options.threads, cache, sample
        )
        yield from Group(checkpoint, options, setting, group, dtypes).lines(cases, step)
        del setting
        gc.collect()


def _sample(checkpoint: Checkpoint, options: Options) -> list[list[int]]:
    found: list[list[int]] = []
    for name in SAMPLE_CASES:
        case = checkpoint.case(name, SAMPLE_TOKENS, options.device, SAMPLE_SEED)
        found += case.ids[: 2 if options.quick else SAMPLE_TEXTS] if case else []
    return found
