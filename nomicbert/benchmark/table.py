"""Lines as tables for a terminal, at most 100 columns wide, with ratios and absent peers."""

import textwrap
from collections.abc import Sequence

from nomicbert.benchmark.lines import (
    MEASURED,
    WRONG,
    Line,
    compare,
    is_ours,
    texts_per_core_hour,
)

WIDTH = 96
# Widths of peer, batch, tokens/s, texts per core-hour, spread, share of the matmul rate, cosine,
# ratio to ours.
COLUMNS = (31, 12, 11, 14, 7, 7, 9, 9)
HEAD = ("peer", "batch", "tokens/s", "texts/core-h", "spread", "matrix", "cosine", "to ours")
LATENCY_HEAD = ("peer", "", "p50 ms", "p99 ms", "", "", "cosine", "to ours")


def milliseconds(seconds: float) -> str:
    """Format seconds as milliseconds with about three significant digits."""
    value = 1000 * seconds
    return f"{value:.0f}" if value >= 100 else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def cosine(line: Line) -> str:
    """Format the least cosine of a measured line."""
    return f"{line['cosine_min']:.5f}"


def whole(value: float | None) -> str:
    """Format a value without decimals; "-" for None."""
    return "-" if value is None else f"{value:,.0f}"


def as_table(lines: Sequence[Line]) -> str:
    """Table of the lines of a case that were measured interleaved; empty if there are none."""
    measured = [line for line in lines if line["status"] == MEASURED]
    if not measured:
        return ""
    first = measured[0]
    latency = "p50" in first
    what = f"{first['case']}: {first['texts']} texts, {first['tokens']} tokens"
    out = [what, _row(LATENCY_HEAD if latency else HEAD)]
    for line in sorted(measured, key=lambda line: (line["dtype"], -line["tokens_per_second"])):
        own = next((x for x in measured if _is_own(x, line)), None)
        to_ours = line["tokens_per_second"] / own["tokens_per_second"] if own else None
        cells = (
            f"{line['peer']} {line['dtype']}",
            "" if latency else line["batch"],
            milliseconds(line["p50"]) if latency else f"{line['tokens_per_second']:,.0f}",
            milliseconds(line["p99"]) if latency else whole(texts_per_core_hour(line)),
            "" if latency else f"{line['spread']:.1%}",
            "" if latency else f"{line['matrix_share']:.0%}",
            cosine(line),
            "" if to_ours is None else f"{to_ours:.2f}",
        )
        out.append(_row(cells))
    for line in measured:
        if is_ours(line["peer"]):
            out += _verdict(line, measured)
    return "\n".join(out)


def _verdict(line: Line, measured: Sequence[Line]) -> list[str]:
    """Sentences that compare ours with the best peer."""
    best, over_best, over_naive, less_exact = compare(measured, line)
    said = []
    if best is not None and over_best is not None:
        said.append(f"{over_best:.2f} x the best peer, {best['peer']}")
    if less_exact is not None:
        said.append(f"{less_exact['peer']} is faster, with least cosine {cosine(less_exact)}")
    if over_naive is not None:
        said.append(f"{over_naive:.2f} x transformers float32 in batches of 32")
    if "shares" in line:
        seconds = sum(line["shares"].values())
        parts = (f"{part} {value / seconds:.0%}" for part, value in line["shares"].items())
        said.append(", ".join(parts))
    name = f"{line['peer']} {line['dtype']}: "
    return textwrap.wrap(name + "; ".join(said), WIDTH, subsequent_indent="  ") if said else []


def left_out(lines: Sequence[Line]) -> str:
    """List absent and wrong peers with their reasons, each once, and the affected cases.

    Empty if no peer is left out.
    """
    reasons: dict[tuple[str, str], list[str]] = {}
    for line in lines:
        if line["status"] != MEASURED:
            name = f"{line['peer']} {line['dtype']}"
            what = "WRONG, not ranked: " if line["status"] == WRONG else ""
            cases = reasons.setdefault((name, what + str(line["reason"])), [])
            if line["case"] not in cases:
                cases.append(line["case"])
    everywhere = {line["case"] for line in lines}
    out = []
    for (name, reason), cases in reasons.items():
        where = "" if set(cases) == everywhere else f" ({', '.join(cases)})"
        out += textwrap.wrap(
            f"{name}: {reason}{where}", WIDTH, initial_indent="  ", subsequent_indent="    "
        )
    return "\n".join(["left out:", *out]) if out else ""


def _is_own(ours: Line, line: Line) -> bool:
    """Whether `ours` is a line of this package with the dtype, input and group of `line`."""
    return is_ours(ours["peer"]) and all(
        ours[key] == line[key] for key in ("dtype", "from_texts", "group")
    )


def _row(cells: Sequence[str]) -> str:
    first, second, *numbers = zip(cells, COLUMNS, strict=True)
    left = f"{first[0]:<{first[1]}}{second[0]:<{second[1]}}"
    return (left + "".join(f"{cell:>{width}}" for cell, width in numbers)).rstrip()
