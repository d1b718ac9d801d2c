"""The whole benchmark of a checkpoint: a dtype's peers are loaded, measured and let go in turn."""

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
    """Refuse what cannot be measured.

    Raises: ValueError: an unknown case, dtype or peer; a dtype that nobody has on the device;
        tokens, rounds or threads below one.
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
            raise ValueError(f"nobody computes in {dtype} on {options.device.type}: choose another")


def run(
    checkpoint: Checkpoint, options: Options, step: Step = lambda what: None
) -> Iterator[list[Line]]:
    """Measure, and yield the lines of each case, one for each peer, as soon as it is done.

    Peers that cannot take part have lines too, which say why. torch's number of threads is set and
    set back.

    Args:
        checkpoint: what is computed.
        options: what is measured.
        step: told what is done next.

    Raises: ValueError: see check.
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


def _groups(
    checkpoint: Checkpoint, options: Options, cache: Path, step: Step
) -> Iterator[list[Line]]:
    for group, dtypes, cases in options.groups():
        setting = checkpoint.setting(options, cache)
        yield from Group(checkpoint, options, setting, group, dtypes).cases(cases, step)
        del setting
        gc.collect()
