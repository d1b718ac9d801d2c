"""Run the benchmark of a checkpoint: load, measure and free the peers of each group."""

import gc
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from nomicbert.benchmark.group import Group, Step
from nomicbert.benchmark.lines import Line
from nomicbert.benchmark.peers import DTYPES, choose
from nomicbert.benchmark.plan import Checkpoint, Options
from nomicbert.benchmark.workloads import NAMES
from nomicbert.runtime.allocator import keep_freed_memory


def check(options: Options) -> None:
    """Check the options.

    Raises: ValueError: an unknown case, dtype or peer; a dtype that no peer supports on the device;
        tokens, rounds or threads below 1.
    """
    for name in ("tokens", "rounds", "threads"):
        if (number := getattr(options, name)) < 1:
            raise ValueError(f"{name} {number}: it must be 1 or more")
    for name, known, given in (
        ("case", NAMES, options.cases),
        ("dtype", DTYPES, options.dtypes),
    ):
        if unknown := [value for value in given if value not in known]:
            raise ValueError(f"unknown {name} {unknown[0]!r}: it must be one of {', '.join(known)}")
    for dtype in options.dtypes:
        if not choose(options.families, [dtype], options.device, options.slow):
            raise ValueError(
                f"no peer supports {dtype} on {options.device.type}: choose another dtype"
            )


def run(
    checkpoint: Checkpoint, options: Options, step: Step = lambda what: None
) -> Iterator[list[Line]]:
    """Measure, and yield the lines of each case as soon as it is done, one line per peer.

    Peers that cannot take part also have lines, with the reason. torch's number of threads is set
    during the run and restored.

    Args:
        checkpoint: the checkpoint to benchmark.
        options: cases, peers and how to measure.
        step: called before each step with its description.

    Raises: ValueError: see check.
    """
    check(options)
    threads = torch.get_num_threads()
    # affects the whole process: set before any peer is loaded, so that all run under it
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


def _groups(
    checkpoint: Checkpoint, options: Options, cache: Path, step: Step
) -> Iterator[list[Line]]:
    for group, dtypes, cases in options.groups():
        setting = checkpoint.setting(options, cache)
        with setting.closing:
            yield from Group(checkpoint, options, setting, group, dtypes).cases(cases, step)
        del setting
        gc.collect()
