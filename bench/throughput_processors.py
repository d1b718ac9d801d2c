"""Results of several processors side by side: a table per model, for bench/throughput_report.py.

A row is a case and a dtype. Each processor has three columns: ours, the best peer of that dtype
with its rate, and the ratio of the two, above 1 where ours is faster. Peers that take strings are
compared with ours from strings, in a row of their own.
"""

from collections.abc import Sequence

from nomicbert.benchmark.lines import (
    MEASURED,
    Comparison,
    Line,
    compare,
    is_ours,
    texts_per_core_hour,
)
from nomicbert.benchmark.memory import CASE
from nomicbert.benchmark.peers import DTYPES
from nomicbert.benchmark.table import cosine, milliseconds, whole
from nomicbert.benchmark.workloads import NAMES

# Flag of /proc/cpuinfo -> its short name; several flags may have the same.
INSTRUCTIONS = {
    "avx2": "avx2",
    "avx512f": "avx512",
    "avx512_bf16": "bf16",
    "avx512_vnni": "vnni",
    "avx_vnni": "vnni",
    "amx_bf16": "amx",
    "amx_int8": "amx",
}
EXPLANATION = """\
Each cell is tokens/s, or the median milliseconds of a latency case. "best" is the fastest peer of
the same dtype; in int8 the fastest whose least cosine is at most 0.002 below ours, followed by a
faster one that is less exact. "ratio" is our speed divided by the best peer's. In brackets:
texts per core-hour."""
Row = tuple[str, str, bool]


def side_by_side(files: Sequence[Sequence[Line]]) -> str:
    """Markdown that compares processors.

    Args:
        files: the lines of each processor, every peer of a group once.
    """
    groups: dict[str, list[Line]] = {}
    for number, lines in enumerate(files):
        for line in lines:
            # two files of one kind of processor stay apart
            groups.setdefault(f"{processor(line)}\0{number}", []).append(line)
    labels = [label_of(place) for place in range(len(groups))]
    named = zip(labels, groups, strict=True)
    legend = "\n".join(f"- {label}: {key.partition(chr(0))[0]}" for label, key in named)
    parts = ["# Processors side by side", legend, EXPLANATION]
    for model in dict.fromkeys(line["model"] for lines in files for line in lines):
        own = [[x for x in lines if x["model"] == model] for lines in groups.values()]
        if rows := _rows(own):
            heads = [f"{x} {what}" for x in labels for what in ("ours", "best", "ratio")]
            parts += [f"## {model}", markdown_table(["case", "dtype", *heads], rows)]
    return "\n\n".join(parts) + "\n"


def processor(line: Line) -> str:
    """Name of a line's processor, its instructions in short, and the threads."""
    machine = line["machine"]
    if machine["gpu"]:
        return str(machine["gpu"])
    has = dict.fromkeys(INSTRUCTIONS[x] for x in INSTRUCTIONS if x in machine["instructions"])
    threads = machine["threads"]
    many = "" if threads == 1 else "s"
    return f"{machine['cpu']} ({', '.join(has) or 'no AVX'}), {threads} thread{many}"


def label_of(place: int) -> str:
    """A, B, ..., Z, A1, B1, ..."""
    return f"{chr(ord('A') + place % 26)}{place // 26 or ''}"


def best_peer(found: Comparison) -> str:
    """The best peer with its rate, and a faster one that is less exact with its least cosine."""
    best, other = found.best, found.less_exact
    said = [f"{best['peer']} {speed(best)}"] if best else []
    if other:
        said.append(f"less exact: {other['peer']} {speed(other)}, cosine {cosine(other)}")
    return "; ".join(said) or "-"


def speed(line: Line) -> str:
    """Median milliseconds of a latency case, else tokens per second."""
    return f"{milliseconds(line['p50'])} ms" if "p50" in line else whole(line["tokens_per_second"])


def ratio(value: float | None) -> str:
    """Format a ratio; "-" for None."""
    return "-" if value is None else f"{value:.2f}"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _rows(processors: Sequence[Sequence[Line]]) -> list[list[str]]:
    """Rows of one model; a row from strings only if a processor has a peer to compare with."""
    found: dict[Row, dict[int, list[str]]] = {}
    compared: set[Row] = set()
    for place, lines in enumerate(processors):
        for line in lines:
            if line["status"] != MEASURED or line["case"] == CASE or not is_ours(line["peer"]):
                continue
            row = line["case"], line["dtype"], line["from_texts"]
            against = compare(lines, line)
            # a latency case may be in two groups: the later one that has a peer counts
            if against.best or against.less_exact:
                compared.add(row)
            elif place in found.get(row, {}):
                continue
            found.setdefault(row, {})[place] = _cells(line, against)
    rows = []
    for row in sorted(found, key=_order):
        case, dtype, from_texts = row
        if from_texts and row not in compared:
            continue
        cells = [found[row].get(place, ["-"] * 3) for place in range(len(processors))]
        name = f"{dtype} from strings" if from_texts else dtype
        rows.append([case, name, *(cell for three in cells for cell in three)])
    return rows


def _cells(line: Line, against: Comparison) -> list[str]:
    rate = texts_per_core_hour(line)
    own = speed(line) if rate is None else f"{speed(line)} ({whole(rate)})"
    return [own, best_peer(against), ratio(against.over_best)]


def _order(row: Row) -> tuple[int, str, int, bool]:
    """Cases in the order of the workloads, unknown ones last."""
    case, dtype, from_texts = row
    place = NAMES.index(case) if case in NAMES else len(NAMES)
    return place, case, DTYPES.index(dtype), from_texts
