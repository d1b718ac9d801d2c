"""Which variants win, and the launch table made of them.

The table, launch/ARCH.json in the output folder, has the format of those of `nomicbert tune`.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from bench.gpu.forms import FP8
from bench.gpu.place import Place
from bench.gpu.runner.ledger import OK
from bench.harness import OURS
from nomicbert.throughput.lines import MEASURED, Line
from nomicbert_kernels import launch
from nomicbert_kernels.launch import Row

# A winner takes at most this share of the shipped form's time, as a geometric mean over its sizes.
WORTH = 0.98
# Launch tables have separate rows for up to this many tokens.
FEW = 64


def plain(row: Row) -> dict[str, Any]:
    """A row in the form that launch tables store."""
    found: dict[str, Any] = {"kernel": row.kernel, "bytes": row.bytes}
    if row.up_to:
        found["up_to"] = dict(row.up_to)
    if row.exactly:
        found["exactly"] = dict(row.exactly)
    if row.settings.library:
        found["library"] = True
    return {**found, **row.settings.constants, **row.settings.options}


def means(entries: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, tuple[float, bool]]]:
    """Contest -> variant -> its time relative to the shipped form, and whether it may win.

    The time is the geometric mean over the sizes. To win, a variant is correct at every size, and
    slower at none by more than the spread; other variants are left out where they are wrong.
    """
    found: dict[str, dict[str, tuple[float, bool]]] = {}
    measured: dict[str, list[Mapping[str, Any]]] = {}
    for entry in entries:
        if entry["status"] == OK and "contest" in entry:
            measured.setdefault(entry["contest"], []).append(entry)
    for name, group in measured.items():
        found[name] = {}
        for variant in group[0]["variants"]:
            shares = [share_of(entry["lines"], variant) for entry in group]
            known = [share for share, _ in shares if share]
            if len(known) == len(group):
                mean = math.exp(sum(map(math.log, known)) / len(known))
                found[name][variant] = mean, all(share <= 1 + noise for share, noise in shares)
    return found


def winners(entries: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, float, dict[str, Any]]]:
    """Contest -> name of the winner, its time relative to the shipped form, and its row.

    A winner has a launch row, may win (see `means`), and its mean is at most WORTH.
    """
    rows = {entry["contest"]: entry["rows"] for entry in reversed(entries) if "contest" in entry}
    found: dict[str, tuple[str, float, dict[str, Any]]] = {}
    for name, variants in means(entries).items():
        good = {
            variant: mean
            for variant, (mean, may_win) in variants.items()
            if may_win and mean <= WORTH and variant in rows[name]
        }
        if good:
            best = min(good, key=good.__getitem__)
            found[name] = best, good[best], rows[name][best]
    return found


def share_of(lines: Sequence[Line], variant: str) -> tuple[float, float]:
    """Time of a variant relative to ours, 0 if either was not measured; the larger spread."""
    known = {line["peer"]: line for line in lines if line["status"] == MEASURED}
    own = known.get(FP8) if FP8 in known else known.get(OURS)
    if own is None or variant not in known:
        return 0.0, 0.0
    spreads = own["spread"], known[variant]["spread"]
    return known[variant]["median"] / own["median"], max(spreads)


def write_table(place: Place, entries: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Write launch/ARCH.json: the winning rows, those for few tokens first."""
    arch = launch.architecture(place.device)
    path = out / "launch" / f"{arch}.json"
    rows = [row for _, _, row in winners(entries).values()]
    for row in [row for row in rows if "n" in row.get("exactly", {}) and "up_to" not in row]:
        # a row has no lower bound: keep the shipped row for few tokens, unless that has been beaten
        dtype = torch.float8_e4m3fn if row["bytes"] == 1 else place.dtype
        kept = launch.settings(row["kernel"], place.device, dtype, rows=1, **row["exactly"])
        rows.append(plain(Row(row["kernel"], row["bytes"], {"rows": FEW}, row["exactly"], kept)))
    rows.sort(key=lambda row: "up_to" not in row)
    if rows:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = ",\n".join(json.dumps(row) for row in rows)
        path.write_text(f'{{"rows": [\n{text}\n]}}\n', encoding="utf-8")
