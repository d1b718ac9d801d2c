"""Basic costs on the device: copying memory, launching a kernel, replaying a graph of kernels."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from bench.gpu.place import Place
from bench.gpu.race import Task, run, timed_work
from bench.harness import Timed, WrongValues
from bench.timing import Work, repeated
from nomicbert.benchmark.lines import Line

# Bytes of a large copy.
COPIED, DRY_COPIED = 2**32, 2**20
# Kernels of a forward pass, 7 per layer and 2 more: nomic (12 layers) and BERT-large (24).
KERNELS = (86, 170)
GROUP = "launch"
COPY, ONE = "copy", "one launch"


def tasks(place: Place) -> Iterator[Task]:
    """A copy, graphs, and a single launch."""
    size = DRY_COPIED if place.dry else COPIED
    yield Task("gemm", "any", COPY, GROUP, bytes=2.0 * size, more={"copied": size})
    for count in KERNELS:
        yield Task("gemm", "any", f"{count} empty kernels", GROUP, more={"kernels": count})
    yield Task("gemm", "any", ONE, GROUP, more={"kernels": 1})


def measure(place: Place, task: Task) -> list[Line]:
    """Measure one of `tasks`."""
    more = task.more or {}
    if task.case == COPY:
        return run(place, task, {"copy_": lambda: copying(place, more["copied"])})
    if task.case == ONE:
        entrants = {
            "triton": lambda: timed_work(empty(place)),
            "torch": lambda: timed_work(tiny(place)),
        }
        return run(place, task, entrants, measure=lambda work: launching(place, work))
    count = more["kernels"]
    entrants = {
        "graph replay": lambda: timed_work(graph_of(place, empty(place), count)),
        "launched one by one": lambda: timed_work(repeated(empty(place), count)),
    }
    # from the host's call to the end on the device, since the host may be the slower one
    return run(place, task, entrants, measure=lambda work: until_done(place, work))


def copying(place: Place, size: int) -> Timed:
    """Tensor.copy_ of random bytes.

    Raises: WrongValues: the copy differs.
    """
    generator = torch.Generator(place.device).manual_seed(0)
    shape = (size // 8,)
    source = torch.randint(2**62, shape, generator=generator, device=place.device)
    target = torch.zeros_like(source)

    def call() -> Tensor:
        return target.copy_(source)

    call()
    if not torch.equal(target, source):
        raise WrongValues("the copy differs from its source")
    return Timed([call], 0.0)


def empty(place: Place) -> Work:
    """A launch of a Triton kernel that does nothing, compiled by this call.

    Raises: RuntimeError: not on a GPU.
    """
    if not place.is_gpu:
        raise RuntimeError("Triton's kernels are compiled for a GPU only")
    from bench.gpu.empty_triton import empty_kernel

    kernel: Any = empty_kernel
    x = torch.zeros(1, device=place.device)

    def launch() -> None:
        kernel[(1,)](x)

    launch()
    return launch


def tiny(place: Place) -> Work:
    """A torch op on one element."""
    x = torch.zeros(1, device=place.device)
    return lambda: x.add_(1.0)


def graph_of(place: Place, launch: Work, count: int) -> Callable[[], None]:
    """The replay of a graph of `count` launches."""
    place.finish()
    graph: Any = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        repeated(launch, count)()
    replay: Callable[[], None] = graph.replay
    return replay


def launching(place: Place, work: Work) -> float:
    """Seconds that the host takes to launch, with an idle device."""
    place.finish()
    started = time.perf_counter()
    work()
    seconds = time.perf_counter() - started
    place.finish()
    return seconds


def until_done(place: Place, work: Work) -> float:
    """Seconds until the device is done."""
    place.finish()
    started = time.perf_counter()
    work()
    place.finish()
    return time.perf_counter() - started
