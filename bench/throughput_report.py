"""Lines of bench/throughput.py -> a Markdown table and a plot.

    python -m bench.throughput_report bench/results/throughput-cpu.jsonl

writes FILE.md next to FILE.jsonl, and FILE.png if matplotlib is installed. If a peer was measured
again, its last line counts.
"""

import argparse
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nomicbert.benchmark.lines import MEASURED, WRONG, Line, is_ours, ratios, read
from nomicbert.benchmark.memory import CASE
from nomicbert.benchmark.table import milliseconds

HEAD = (
    "case", "peer", "batch", "tokens/s", "texts/s", "spread", "GFLOP/s", "of matmul rate",
    "cosine mean / least", "peer / ours",
)  # fmt: skip
DPI = 130


def latest(lines: Sequence[Line]) -> list[Line]:
    """The last line of each model, case, group and peer, in the order of the first ones."""
    kept: dict[tuple[Any, ...], Line] = {}
    for line in lines:
        key = tuple(line[name] for name in ("model", "case", "group", "peer", "dtype"))
        kept[key] = line
    return list(kept.values())


def as_markdown(lines: Sequence[Line]) -> str:
    """Tables for each model: ours against the best peer, all measurements, and absent peers."""
    parts = []
    for model in dict.fromkeys(line["model"] for line in lines):
        own = [line for line in lines if line["model"] == model]
        # lines kept from an earlier run may come from another machine or commit
        places = dict.fromkeys(_surroundings(line) for line in own)
        parts += [f"## {model}", *places, *_verdicts(own), *_measured(own)]
        parts += [*_memory(own), *_left_out(own)]
    return "\n\n".join(parts) + "\n"


def _verdicts(lines: Sequence[Line]) -> list[str]:
    rows = []
    for line in lines:
        if line["status"] != MEASURED or line["case"] == CASE or not is_ours(line["peer"]):
            continue
        best, over_best, over_naive = ratios(lines, line)
        shares = line.get("shares") or {}
        whole = sum(shares.values())
        rows.append(
            (
                line["case"],
                f"{line['peer']} {line['dtype']}",
                f"{line['tokens_per_second']:,.0f}",
                f"{best['peer']} {best['tokens_per_second']:,.0f}" if best else "-",
                _ratio(over_best),
                _ratio(over_naive),
                " / ".join(f"{100 * value / whole:.0f}" for value in shares.values()) or "-",
            )
        )
    head = (
        "case", "ours", "tokens/s", "best peer of that dtype", "ours / best",
        "ours / transformers fp32, batch 32", "tokenise / encode / pool, %",
    )  # fmt: skip
    return ["### Ours and the best peer", _table(head, rows)] if rows else []


def _measured(lines: Sequence[Line]) -> list[str]:
    measured = [x for x in lines if x["status"] == MEASURED and x["case"] != CASE]
    rows = []
    for line in measured:
        own = next((x for x in measured if _is_own(x, line)), None)
        rate = line["tokens_per_second"]
        speed = f"{rate:,.0f}"
        if "p50" in line:
            speed += f" (p50 {milliseconds(line['p50'])}, p99 {milliseconds(line['p99'])} ms)"
        rows.append(
            (
                line["case"],
                f"{line['peer']} {line['dtype']}",
                line["batch"],
                speed,
                f"{line['texts_per_second']:,.1f}",
                f"{line['spread']:.1%}",
                f"{line['model_flops'] / 1e9:,.0f}",
                f"{line['matrix_share']:.0%}",
                f"{line['cosine_mean']:.5f} / {line['cosine_min']:.5f}",
                _ratio(rate / own["tokens_per_second"] if own else None),
            )
        )
    return ["### All measurements", _table(HEAD, rows)] if rows else []


def _memory(lines: Sequence[Line]) -> list[str]:
    rows = [
        (f"{line['peer']} {line['dtype']}", f"{line['peak_bytes'] / 2**20:,.0f}")
        for line in lines
        if line["status"] == MEASURED and line["case"] == CASE
    ]
    return ["### Peak memory", _table(("peer", "MiB"), rows)] if rows else []


def _left_out(lines: Sequence[Line]) -> list[str]:
    reasons: dict[str, list[str]] = {}
    for line in lines:
        if line["status"] != MEASURED:
            wrong = "wrong, not ranked: " if line["status"] == WRONG else ""
            said = f"{line['peer']} {line['dtype']}: {wrong}{line['reason']}"
            reasons.setdefault(said, []).append(line["case"])
    rows = [f"- {said} ({', '.join(dict.fromkeys(cases))})" for said, cases in reasons.items()]
    return ["### Left out", "\n".join(rows)] if rows else []


def _surroundings(line: Line) -> str:
    machine, versions = line["machine"], line["versions"]
    where = machine["gpu"] or f"{machine['cpu']}, {', '.join(machine['instructions'])}"
    known = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    commit = f" Commit {line['commit'][:12]}." if line["commit"] else ""
    return f"{where}; {machine['threads']} threads. {known}.{commit}"


def _is_own(ours: Line, line: Line) -> bool:
    same = ("case", "dtype", "from_texts", "group")
    return is_ours(ours["peer"]) and all(ours[key] == line[key] for key in same)


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def plot(lines: Sequence[Line], path: Path) -> None:
    """Bars of tokens/s: a row of panels for each model, a panel for each dtype."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rates = [x for x in lines if x["status"] == MEASURED and x["case"] != CASE]
    models = list(dict.fromkeys(x["model"] for x in rates))
    dtypes = list(dict.fromkeys(x["dtype"] for x in rates if is_ours(x["peer"])))
    peers = list(dict.fromkeys(x["peer"] for x in rates))
    colours = {peer: f"C{number % 10}" for number, peer in enumerate(peers)}
    size = (max(10.0, 7.0 * len(dtypes)), 0.6 + 4.5 * len(models))
    figure, panels = pyplot.subplots(len(models), len(dtypes), figsize=size, squeeze=False)
    for model, row in zip(models, panels, strict=True):
        for dtype, panel in zip(dtypes, row, strict=True):
            here = [x for x in rates if x["model"] == model and x["dtype"] == dtype]
            cases = list(dict.fromkeys(x["case"] for x in here))
            width = 0.85 / max(1, len(peers))
            for line in here:
                place = cases.index(line["case"]) + width * peers.index(line["peer"])
                edge = "black" if is_ours(line["peer"]) else "none"
                colour = colours[line["peer"]]
                panel.bar(place, line["tokens_per_second"], width, color=colour, edgecolor=edge)
            panel.set_xticks([i + 0.4 for i in range(len(cases))], cases, rotation=30, ha="right")
            panel.set_title(f"{model}, {dtype}")
            panel.set_ylabel("real tokens/s")
    handles = [pyplot.Rectangle((0, 0), 1, 1, color=colours[peer]) for peer in peers]
    figure.legend(handles, peers, loc="lower center", ncols=4)
    figure.tight_layout(rect=(0, 0.8 / size[1], 1, 1))
    figure.savefig(path, dpi=DPI)
    pyplot.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.throughput_report")
    parser.add_argument("file", type=Path, help="lines of bench/throughput.py")
    path = parser.parse_args(arguments).file
    lines = latest(read(path))
    path.with_suffix(".md").write_text(as_markdown(lines), encoding="utf-8")
    print(path.with_suffix(".md"))
    if importlib.util.find_spec("matplotlib"):
        plot(lines, path.with_suffix(".png"))
        print(path.with_suffix(".png"))


if __name__ == "__main__":
    main()
