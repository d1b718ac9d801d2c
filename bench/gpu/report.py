"""Lines of `python -m bench.gpu` -> Markdown tables, the goals first, and a plot.

    python -m bench.gpu.report build/gpu.jsonl

writes FILE.md next to FILE.jsonl, and FILE.png if matplotlib is installed.
"""

import argparse
import importlib.util
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from bench.gpu.goals import Goal, goals, ratio, reached
from bench.gpu.plan import SECONDS
from bench.gpu.race import amount
from bench.gpu.runner.ledger import Ledger, ends
from nomicbert.benchmark.lines import MEASURED, Line, block_of

NOT_MEASURED = "not measured"
GOALS = ("model", "case", "what", "measured", "goal", "stretch", "measured / goal")
KERNELS = ("model", "case", "candidate", "us", "spread", "TFLOP/s", "GB/s", "of roofline",
           "error", "time / ours")  # fmt: skip
WHOLE = ("model", "case", "peer", "batch", "Mtok/s", "texts/s", "p50 / p99, ms", "spread",
         "model TFLOP/s", "of 790", "of 989", "cosine, least", "ours / it")  # fmt: skip
# FLOP/s of a matmul: measured on an H200, and from its data sheet.
CEILINGS = (790e12, 989e12)
STREAMS = ("model", "case", "what", "Mtok/s", "texts/s", "spread", "of the model's")
EVEN = ("model", "case", "ours, TFLOP/s", "break-even of the design", "ours / break-even",
        "best peer", "its TFLOP/s", "ours / best peer")  # fmt: skip
DPI = 130


def as_markdown(lines: Sequence[Line]) -> str:
    """All tables."""
    parts = ["# On a GPU", *surroundings(lines), "## Goals", goals_table(lines)]
    for part in dict.fromkeys([*SECONDS, *(line["part"] for line in lines)]):
        own = [line for line in lines if line["part"] == part]
        if not own:
            continue
        parts.append(f"## {part}")
        measured = [line for line in own if line["status"] == MEASURED]
        if part in ("models", "latency"):
            parts.append(table(WHOLE, [whole_row(x, measured) for x in measured]))
        elif part == "stream":
            parts.append(table(STREAMS, [stream_row(x, measured) for x in measured]))
        else:
            if even := list(break_even(measured)):
                parts += ["### Ours and its break-even", table(EVEN, even), "### All"]
            parts.append(table(KERNELS, [kernel_row(x, measured) for x in measured]))
        parts += left_out(own)
    return "\n\n".join(parts) + "\n"


def goals_table(lines: Sequence[Line]) -> str:
    """Each goal next to the measured value."""
    return table(GOALS, [goal_row(goal, reached(goal, lines)) for goal in goals()])


def goal_row(goal: Goal, value: float | None) -> tuple[str, ...]:
    stretch = "-" if goal.stretch is None else f"{goal.stretch:g}"
    found = NOT_MEASURED if value is None else f"{value:.3g}"
    share = "-" if value is None else f"{ratio(goal, value):.2f}"
    return goal.model, goal.case, goal.what, found, f"{goal.value:g}", stretch, share


def kernel_row(line: Line, lines: Sequence[Line]) -> tuple[str, ...]:
    own = ours_of(line, lines)
    return (
        line["model"],
        line["case"],
        line["peer"],
        f"{1e6 * line['median']:,.1f}",
        f"{line['spread']:.1%}",
        number(line.get("tflops"), ".1f"),
        number(line.get("gigabytes_per_second"), ",.0f"),
        number(line.get("roofline_percent"), ".0f", "%"),
        f"{line['error']:.2g}",
        number(line["median"] / own["median"] if own else None, ".2f"),
    )


def whole_row(line: Line, lines: Sequence[Line]) -> tuple[str, ...]:
    """A row of whole models. The last cell is ours / peer for the same kind of input."""
    own = next(
        (
            x
            for x in lines
            if block_of(x) == block_of(line)
            and x["peer"] == ("ours-texts" if line["from_texts"] else "ours")
        ),
        None,
    )
    rate = line["tokens_per_second"]
    latency = "-"
    if "p50" in line:
        latency = f"{1000 * line['p50']:.3f} / {1000 * line['p99']:.3f}"
    return (
        line["model"],
        line["case"],
        f"{line['peer']} {line['dtype']}",
        line["batch"],
        f"{rate / 1e6:.3f}",
        f"{line['texts_per_second']:,.0f}",
        latency,
        f"{line['spread']:.1%}",
        f"{line['model_flops'] / 1e12:.1f}",
        *(f"{line['model_flops'] / best:.0%}" for best in CEILINGS),
        f"{line['cosine_min']:.5f}",
        number(own["tokens_per_second"] / rate if own else None, ".2f"),
    )


def stream_row(line: Line, lines: Sequence[Line]) -> tuple[str, ...]:
    same = [x for x in lines if block_of(x) == block_of(line)]
    model = next((x for x in same if x["peer"].startswith("model")), None)
    rate = line["tokens_per_second"]
    return (
        line["model"],
        line["case"],
        line["peer"],
        f"{rate / 1e6:.3f}",
        f"{line['texts'] / line['median']:,.0f}",
        f"{line['spread']:.1%}",
        number(rate / model["tokens_per_second"] if model else None, ".2f"),
    )


def break_even(lines: Sequence[Line]) -> Iterator[tuple[str, ...]]:
    """Rows of the fused GEMMs that have to beat a cuBLAS GEMM followed by a small kernel."""
    for line in lines:
        if line["peer"] != "ours" or not line.get("break_even_tflops"):
            continue
        others = (x for x in lines if block_of(x) == block_of(line))
        rivals = [x for x in others if not x["peer"].startswith("ours")]
        best = max(rivals, key=lambda x: x["tflops"], default=None)
        even = line["break_even_tflops"]
        yield (
            line["model"],
            line["case"],
            f"{line['tflops']:.1f}",
            f"{even:g}",
            f"{line['tflops'] / even:.2f}",
            best["peer"] if best else "-",
            number(best["tflops"] if best else None, ".1f"),
            number(line["tflops"] / best["tflops"] if best else None, ".2f"),
        )


def left_out(lines: Sequence[Line]) -> list[str]:
    """Candidates without a figure: each reason once, with its cases."""
    reasons: dict[str, list[str]] = {}
    for line in lines:
        if line["status"] != MEASURED:
            said = f"{line['peer']} {line['dtype']}: {line['status']}: {line['reason']}"
            reasons.setdefault(said, []).append(f"{line['model']} {line['case']}")
    rows = [f"- {said} ({', '.join(dict.fromkeys(cases))})" for said, cases in reasons.items()]
    return ["Left out, not ranked:", "\n".join(rows)] if rows else []


def surroundings(lines: Iterable[Line]) -> list[str]:
    """Each machine, set of versions and commit that lines come from, and the clocks' range."""
    places: dict[str, list[Line]] = {}
    for line in lines:
        known = ", ".join(f"{name} {value}" for name, value in line["versions"].items() if value)
        where = line["machine"]["gpu"] or line["machine"]["cpu"]
        commit = f" Commit {line['commit'][:12]}." if line["commit"] else ""
        places.setdefault(f"{where}. {known}.{commit}", []).append(line)
    return [f"{said}{_clocks(own)}" for said, own in places.items()]


def _clocks(lines: Sequence[Line]) -> str:
    read = [line["clocks"]["clocks.sm"] for line in lines if line.get("clocks")]
    numbers = [value for value in read if isinstance(value, float)]
    if not numbers:
        return ""
    return f" SM clock after a case: {min(numbers):.0f} to {max(numbers):.0f} MHz."


def ours_of(line: Line, lines: Sequence[Line]) -> Line | None:
    """Our line of the same case."""
    same = (x for x in lines if block_of(x) == block_of(line) and x["peer"] == "ours")
    return next(same, None)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def number(value: float | None, form: str, unit: str = "") -> str:
    """A cell that may be empty."""
    return "-" if value is None else f"{value:{form}}{unit}"


def plot(lines: Sequence[Line], path: Path) -> None:
    """Bar chart of each case's `amount`, with a panel per part and model."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    measured = [x for x in lines if x["status"] == MEASURED]
    panels: dict[tuple[str, str], list[Line]] = {}
    for line in measured:
        panels.setdefault((line["part"], line["model"]), []).append(line)
    rows = max(1, len(panels))
    figure, axes = pyplot.subplots(rows, 1, figsize=(14, 4.2 * rows), squeeze=False)
    for panel, ((part, model), own) in zip(axes[:, 0], panels.items(), strict=False):
        cases = list(dict.fromkeys(x["case"] for x in own))
        peers = list(dict.fromkeys(x["peer"] for x in own))
        width = 0.85 / len(peers)
        for place, peer in enumerate(peers):
            found = {x["case"]: value(x) for x in own if x["peer"] == peer}
            xs = [cases.index(case) + width * place for case in found]
            panel.bar(xs, list(found.values()), width, label=peer)
        panel.set_xticks([i + 0.4 for i in range(len(cases))], cases, rotation=30, ha="right")
        units = list(dict.fromkeys(amount(x).split(" ", 1)[1] for x in own))
        panel.set_title(f"{part}, {model}: {', '.join(units)}")
        panel.legend(fontsize=7, ncols=2)
    figure.tight_layout()
    figure.savefig(path, dpi=DPI)
    pyplot.close(figure)


def value(line: Line) -> float:
    """The figure of `amount` as a number."""
    return float(amount(line).split(" ", 1)[0].replace(",", ""))


def read(path: Path) -> list[Line]:
    """The lines of all cases that have ended; only lines of one stage form a group."""
    return [
        {**line, "group": f"{entry['stage']}, {line['group']}"}
        for entry in ends(Ledger(path).lines()).values()
        for line in entry.get("lines", [])
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.report")
    parser.add_argument("file", type=Path, help="of python -m bench.gpu, or bench.gpu.proof")
    path = parser.parse_args(arguments).file
    lines = read(path)
    path.with_suffix(".md").write_text(as_markdown(lines), encoding="utf-8")
    print(path.with_suffix(".md"))
    if importlib.util.find_spec("matplotlib"):
        plot(lines, path.with_suffix(".png"))
        print(path.with_suffix(".png"))


if __name__ == "__main__":
    main()
