"""Time of a forward pass by kernel, measured with torch.profiler."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from bench.gpu.models import Models
from bench.gpu.place import Place
from bench.gpu.proof.cases import case, matched
from bench.gpu.proof.speed import MODEL, models_of, of_ours
from bench.gpu.rivals import Budgets
from bench.gpu.runner.child import Case, Facts
from nomicbert.benchmark.batching import Batching
from nomicbert.benchmark.workloads import Case as Texts

# Workload -> tokens: one batch as ours takes it, and one query.
SHAPES = {"fixed-512": 16896, "fixed-8192": 16896, "latency-32": 1}
DRY_SHAPES = {"queries": 64, "latency-24": 1}
# Kernels that a line keeps, slowest first.
NAMES = 40


def cases(stage: str, options: Facts) -> Sequence[Case]:
    """One case per workload."""
    place = Place.here(options["dry"])
    models = models_of(place, options, of_ours(place, ("ours",)))
    shapes = DRY_SHAPES if place.dry else SHAPES
    found = [
        case(place, name, functools.partial(traced, place, models, name, tokens), 4.0)
        for name, tokens in shapes.items()
    ]
    return matched(found, options)


def traced(place: Place, models: Models, name: str, tokens: int) -> Facts:
    """Kernels of one pass after three warm-up passes."""
    texts = models.checkpoint(MODEL).case(name, tokens, place.device)
    assert texts is not None
    (rival,) = models.group("models", MODEL).options.peers(())
    runner = rival.load(models.group("models", MODEL).setting)
    assert isinstance(runner, Budgets)
    way = Batching("one", (tuple(range(len(texts.ids))),))
    for _ in range(3):
        runner.vectors(texts, way)
    place.finish()
    return times(place, runner.vectors, texts, way)


def times(place: Place, vectors: Callable[..., Any], texts: Texts, way: Batching) -> Facts:
    """Microseconds per kernel name, busy time and span."""
    activities = [ProfilerActivity.CPU]
    if place.is_gpu:
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler:
        vectors(texts, way)
        place.finish()
    kind = DeviceType.CUDA if place.is_gpu else DeviceType.CPU
    events = sorted(
        (event for event in profiler.events() if event.device_type == kind),
        key=lambda event: event.time_range.start,
    )
    if not events:
        raise RuntimeError("the profiler has seen no kernel")
    found: dict[str, list[float]] = {}
    busy = end = 0.0
    for event in events:
        start, stop = event.time_range.start, event.time_range.end
        found.setdefault(event.name, []).append(stop - start)
        # kernels may overlap: count each instant once
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
    span = end - events[0].time_range.start
    rows = [
        {"name": name[:120], "count": len(each), "us": round(sum(each), 1)}
        for name, each in sorted(found.items(), key=lambda item: -sum(item[1]))
    ]
    said = f"{busy:,.0f} us in {len(events)} kernels, {span - busy:,.0f} us between them"
    return {
        "kernels": rows[:NAMES],
        "busy_us": busy,
        "span_us": span,
        "tokens": texts.tokens,
        "said": said,
    }
