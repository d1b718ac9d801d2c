"""What is read first of a run: forty lines of text, of the lines that are there so far."""

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.gpu.runner.ledger import ENDS, FAULTS, OK, Line, ends
from bench.gpu.runner.supervise import Stage, left, minutes

MOST = 40
WIDTH = 120


def write(path: Path, lines: Sequence[Line], stages: Sequence[Stage]) -> None:
    """The summary, in one piece."""
    part = path.with_name(f"{path.name}.part")
    text = "\n".join(line[:WIDTH] for line in [*summary(lines, stages)][:MOST])
    part.write_text(text + "\n", encoding="utf-8")
    part.replace(path)


def summary(lines: Sequence[Line], stages: Sequence[Stage]) -> Iterator[str]:
    """What it says: the machine, each stage, what went wrong, and the figures."""
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
    for line in done.values():
        if line["status"] == OK:
            yield from told(line)


def where(done: Mapping[Any, Line]) -> Iterator[str]:
    """The machine and its versions, once they are known."""
    line = done.get(("place", "machine"))
    now = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    if line is None or line["status"] != OK:
        yield f"{now}. The machine is not known yet."
        return
    machine, versions = line["machine"], line["versions"]
    names = ("python", "torch", "triton", "transformers", "sentence-transformers", "cuda")
    yield f"{now}. {machine.get('gpu') or machine.get('cpu')}. Commit {line['commit']}."
    yield ", ".join(f"{name} {versions.get(name)}" for name in names)


def counted(stage: Stage, done: Mapping[Any, Line], waiting: Sequence[str]) -> str:
    """One row of the table of stages."""
    own = [line for (name, _), line in done.items() if name == stage.name]
    counts = [sum(line["status"] == status for line in own) for status in ENDS]
    seconds = sum(line.get("seconds", 0.0) for line in own)
    some = "all" if list(waiting) == ["all"] else str(len(waiting))
    cells = "".join(f"{count:>9}" for count in counts)
    return f"{stage.name:<10}{cells}{some:>9}{seconds:>9.1f}{stage.box:>6.0f}"


def compiled(done: Mapping[Any, Line]) -> str:
    """How many kernels were compiled, where, and how many of those asked for lay ready."""
    warm = done.get(("warm", "kernels"), {})
    later = [line for (stage, _), line in done.items() if stage != "warm"]
    new, ready = (sum(line.get(name, 0) for line in later) for name in ("compiled", "from_cache"))
    said = f"kernels: {warm.get('compiled', 0)} compiled beside"
    if "seconds" in warm:
        said += f" in {minutes(warm['seconds'])}"
    return f"{said}; then {new} compiled and {ready} found ready"


def told(line: Line) -> Iterator[str]:
    """The figures of one case, as far as they are worth a line here."""
    stage, case = line["stage"], line["case"]
    if stage in ("headline", "again", "peers", "fp8"):
        rates = [x for x in line.get("lines", []) if x["status"] == "measured"]
        if rates and "tokens_per_second" in rates[0]:
            said = ", ".join(f"{x['peer']} {figure(x)}" for x in rates)
            yield f"{stage}: {case}: {said}"
    elif stage == "model":
        yield f"model: {case}: {line['said']}"
    elif stage == "trace":
        first = line["kernels"][0]
        yield f"trace: {case}: {line['said']}; most in {first['name'][:40]}: {first['us']:,.0f} us"
    elif stage == "variants":
        own = [x for x in line["lines"] if x["status"] == "measured"]
        own.sort(key=lambda x: x["median"])
        if len(own) > 1:
            said = ", ".join(f"{x['peer']} {1e6 * x['median']:.0f}" for x in own[:4])
            yield f"variants: {case}, us: {said}"


def figure(line: Mapping[str, Any]) -> str:
    """A rate with its cosine, or a latency."""
    if "p50" in line:
        return f"p50 {1e3 * line['p50']:.3f} ms"
    rate = line["tokens_per_second"] / 1e6
    cosine = line.get("cosine_min")
    return f"{rate:.3f} Mtok/s" + (f" (cosine {cosine:.4f})" if cosine is not None else "")
