"""Lines of bench/throughput.py -> Markdown tables and a plot.

    python -m bench.throughput_report bench/results/throughput-cpu.jsonl
    python -m bench.throughput_report intel.jsonl amd.jsonl --out processors.md

The first writes FILE.md next to FILE.jsonl, and FILE.png if matplotlib is installed. The second
compares processors, one per file (bench/throughput_processors.py), and writes the tables of each
file as well. If a peer was measured again, its last line counts.
"""

import argparse
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.throughput_processors import best_peer, markdown_table, ratio, side_by_side, speed
from nomicbert.benchmark.lines import (
    MEASURED,
    WRONG,
    Line,
    compare,
    is_ours,
    read,
    texts_per_core_hour,
)
from nomicbert.benchmark.memory import CASE
from nomicbert.benchmark.table import milliseconds, whole

HEAD = (
    "case", "peer", "batch", "tokens/s", "texts per core-hour", "spread", "of matmul rate",
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
    """Machines; for each model ours against the best peer, all measurements, and absent peers."""
    parts = _machines(lines)
    for model in dict.fromkeys(line["model"] for line in lines):
        own = [line for line in lines if line["model"] == model]
        parts += [f"## {model}", *_verdicts(own), *_measured(own)]
        parts += [*_memory(own), *_left_out(own)]
    return "\n\n".join(parts) + "\n"


def _verdicts(lines: Sequence[Line]) -> list[str]:
    rows = []
    for line in lines:
        if line["status"] != MEASURED or line["case"] == CASE or not is_ours(line["peer"]):
            continue
        found = compare(lines, line)
        shares = line.get("shares") or {}
        seconds = sum(shares.values())
        rows.append(
            (
                line["case"],
                f"{line['peer']} {line['dtype']}",
                speed(line),
                whole(texts_per_core_hour(line)),
                best_peer(found),
                ratio(found.over_best),
                ratio(found.over_naive),
                " / ".join(f"{100 * value / seconds:.0f}" for value in shares.values()) or "-",
            )
        )
    head = (
        "case", "ours", "tokens/s or ms", "texts per core-hour", "best peer of that dtype",
        "ours / best", "ours / transformers fp32, batch 32", "tokenise / encode / pool, %",
    )  # fmt: skip
    return ["### Ours and the best peer", markdown_table(head, rows)] if rows else []


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
                whole(texts_per_core_hour(line)),
                f"{line['spread']:.1%}",
                f"{line['matrix_share']:.0%}",
                f"{line['cosine_mean']:.5f} / {line['cosine_min']:.5f}",
                ratio(rate / own["tokens_per_second"] if own else None),
            )
        )
    return ["### All measurements", markdown_table(HEAD, rows)] if rows else []


def _memory(lines: Sequence[Line]) -> list[str]:
    rows = [
        (f"{line['peer']} {line['dtype']}", f"{line['peak_bytes'] / 2**20:,.0f}")
        for line in lines
        if line["status"] == MEASURED and line["case"] == CASE
    ]
    return ["### Peak memory", markdown_table(("peer", "MiB"), rows)] if rows else []


def _left_out(lines: Sequence[Line]) -> list[str]:
    reasons: dict[str, list[str]] = {}
    for line in lines:
        if line["status"] != MEASURED:
            wrong = "wrong, not ranked: " if line["status"] == WRONG else ""
            said = f"{line['peer']} {line['dtype']}: {wrong}{line['reason']}"
            reasons.setdefault(said, []).append(line["case"])
    rows = [f"- {said} ({', '.join(dict.fromkeys(cases))})" for said, cases in reasons.items()]
    return ["### Left out", "\n".join(rows)] if rows else []


def _machines(lines: Sequence[Line]) -> list[str]:
    """A paragraph per machine and number of threads, with all versions and commits of its lines."""
    places: dict[str, list[Line]] = {}
    for line in lines:
        machine = line["machine"]
        where = machine["gpu"] or f"{machine['cpu']}, {', '.join(machine['instructions'])}"
        places.setdefault(f"{where}; {machine['threads']} threads.", []).append(line)
    return [f"{where} {_versions(own)}.{_commits(own)}" for where, own in places.items()]


def _versions(lines: Sequence[Line]) -> str:
    found: dict[str, dict[str, None]] = {}
    for line in lines:
        for name, version in line["versions"].items():
            if version:
                found.setdefault(name, {})[version] = None
    return ", ".join(f"{name} {' and '.join(versions)}" for name, versions in found.items())


def _commits(lines: Sequence[Line]) -> str:
    found = dict.fromkeys(line["commit"][:12] for line in lines if line["commit"])
    return f" Commit{'s' * (len(found) > 1)} {', '.join(found)}." if found else ""


def _is_own(ours: Line, line: Line) -> bool:
    same = ("case", "dtype", "from_texts", "group")
    return is_ours(ours["peer"]) and all(ours[key] == line[key] for key in same)


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
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="lines of a processor")
    parser.add_argument("--out", type=Path, metavar="FILE", help="Markdown that compares the files")
    args = parser.parse_args(arguments)
    files = {path: latest(read(path)) for path in args.files}
    for path, lines in files.items():
        path.with_suffix(".md").write_text(as_markdown(lines), encoding="utf-8")
        print(path.with_suffix(".md"))
        if importlib.util.find_spec("matplotlib"):
            plot(lines, path.with_suffix(".png"))
            print(path.with_suffix(".png"))
    if len(files) > 1 or args.out:
        out = args.out or args.files[0].with_name("processors.md")
        out.write_text(side_by_side(list(files.values())), encoding="utf-8")
        print(out)


if __name__ == "__main__":
    main()
