"""The summary of a run so far: at most forty lines of text."""

import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.gpu.goals import FP8, TEXTS
from bench.gpu.proof.winners import means, winners
from bench.gpu.runner.ledger import ENDS, FAULTS, OK, Line, ends
from bench.gpu.runner.supervise import Stage, left, minutes
from nomicbert.benchmark.lines import MEASURED

MOST = 40
WIDTH = 160


def write(path: Path, lines: Sequence[Line], stages: Sequence[Stage]) -> None:
    """Replace the summary file atomically."""
    part = path.with_name(f"{path.name}.part")
    text = "\n".join(line[:WIDTH] for line in [*summary(lines, stages)][:MOST])
    part.write_text(text + "\n", encoding="utf-8")
    part.replace(path)


def summary(lines: Sequence[Line], stages: Sequence[Stage]) -> Iterator[str]:
    """Its lines: machine, stages, failures, then results."""
    done = ends(lines)
    yield from where(done)
    yield f"{'stage':<10}{''.join(f'{word:>9}' for word in (*ENDS, 'left', 'seconds'))}{'box':>6}"
    waiting = left(stages, lines)
    for stage in stages:
        yield counted(stage, done, waiting.get(stage.name, []))
    yield compiled(done)
    faults = [line for line in done.values() if line["status"] in FAULTS]
    for line in faults[:8]:
        yield f"{line['status'].upper()} {line['stage']}: {line['case']}: {line.get('reason', '')}"
    if len(faults) > 8:
        yield f"... and {len(faults) - 8} more"
    yield from contests([line for (name, _), line in done.items() if name == "variants"])
    right = [line for line in done.values() if line["status"] == OK]
    yield from headline([line for line in right if line["stage"] == "headline"])
    for line in sorted(right, key=lambda line: line["stage"] == "profile"):
        yield from told(line)


def where(done: Mapping[Any, Line]) -> Iterator[str]:
    """Machine and versions, once stage baseline has recorded them."""
    line = done.get(("baseline", "machine"))
    now = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    if line is None or line["status"] != OK:
        yield f"{now}. The machine is not known yet."
        return
    machine, versions = line["machine"], line["versions"]
    names = ("python", "torch", "triton", "transformers", "sentence-transformers", "cuda")
    yield f"{now}. {machine.get('gpu') or machine.get('cpu')}. Commit {line['commit']}."
    yield ", ".join(f"{name} {versions.get(name)}" for name in names)


def counted(stage: Stage, done: Mapping[Any, Line], waiting: Sequence[str]) -> str:
    """One row of the stage table."""
    own = [line for (name, _), line in done.items() if name == stage.name]
    counts = [sum(line["status"] == status for line in own) for status in ENDS]
    seconds = sum(line.get("seconds", 0.0) for line in own)
    some = "all" if list(waiting) == ["all"] else str(len(waiting))
    cells = "".join(f"{count:>9}" for count in counts)
    return f"{stage.name:<10}{cells}{some:>9}{seconds:>9.1f}{stage.box:>6.0f}"


def compiled(done: Mapping[Any, Line]) -> str:
    """How many kernels were compiled in the background, in stages, and found in the cache."""
    background = done.get(("precompile", "kernels"), {})
    later = [line for (stage, _), line in done.items() if stage != "precompile"]
    new, ready = (sum(line.get(name, 0) for line in later) for name in ("compiled", "from_cache"))
    said = f"kernels: {background.get('compiled', 0)} compiled in the background"
    if "seconds" in background:
        said += f" in {minutes(background['seconds'])}"
    refused = ", ".join(background.get("refused", {}))
    said += f" ({refused} refused)" if refused else ""
    return f"{said}; then {new} compiled, {ready} cache hits"


def headline(entries: Sequence[Line]) -> Iterator[str]:
    """Our throughput on each workload, wrapped."""
    found = []
    for line in entries:
        rates = {x["peer"]: figure(x) for x in line["lines"] if x["status"] == MEASURED}
        said = [rates["ours"]] if "ours" in rates else []
        said += [f"{rates[TEXTS]} from strings"] if TEXTS in rates else []
        if said:
            found.append(f"{line['case']} {', '.join(said)}")
    if found:
        yield from textwrap.wrap(f"headline: {'; '.join(found)}", WIDTH, subsequent_indent="  ")


def told(line: Line) -> Iterator[str]:
    """A summary line for the main results of a case."""
    stage, case = line["stage"], line["case"]
    if stage in ("tuned", "peers", "fp8", "compiled") and not case.startswith("op "):
        rates = [x for x in line.get("lines", []) if x["status"] == MEASURED]
        if rates:
            said = ", ".join(f"{x['peer']} {figure(x)}" for x in rates)
            yield f"{stage}: {case}: {said}"
    elif stage == "profile":
        first = line["kernels"][0]
        most = f"most in {first['name'][:40]}: {first['us']:,.0f} us"
        yield f"profile: {case}: {line['said']}; {most}"


def contests(entries: Sequence[Line]) -> Iterator[str]:
    """The fastest variant of each contest, wrapped."""
    won, found = winners(entries), []
    for name, variants in means(entries).items():
        if variants:
            best = min(variants, key=lambda variant: variants[variant][0])
            star = "*" if won.get(name, ("",))[0] == best else ""
            found.append(f"{name}: {best}{star} {variants[best][0]:.2f}")
    if found:
        text = f"fastest variants, time / shipped (* taken): {'; '.join(found)}"
        yield from textwrap.wrap(text, WIDTH, subsequent_indent="  ")


def figure(line: Mapping[str, Any]) -> str:
    """Throughput, with its cosine in fp8; or latency."""
    if "p50" in line:
        return f"p50 {1e3 * line['p50']:.3f} ms"
    rate = f"{line['tokens_per_second'] / 1e6:.3f} Mtok/s"
    return rate + (f" (cosine {line['cosine_min']:.4f})" if line["peer"] == FP8 else "")
