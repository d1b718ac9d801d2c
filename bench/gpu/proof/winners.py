"""Which variants have won, and the launch table that they make.

launch/ARCH.json beside the ledger is read as those of `nomicbert tune` are.
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

# A row has to be this much faster than the shipped one, on average over its sizes.
WORTH = 0.98
# Tokens up to which launch tables speak of few rows.
FEW = 64


def plain(row: Row) -> dict[str, Any]:
    """A row as a launch table stores it."""
    found: dict[str, Any] = {"kernel": row.kernel, "bytes": row.bytes}
    if row.up_to:
        found["up_to"] = dict(row.up_to)
    if row.exactly:
        found["exactly"] = dict(row.exactly)
    if row.settings.library:
        found["library"] = True
    return {**found, **row.settings.constants, **row.settings.options}


def winners(entries: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, float, dict[str, Any]]]:
    """Contest -> the variant that is to be taken, its time over the shipped one's, and its row.

    It has to be right at every size that was measured, slower at none by more than the spread, and
    `WORTH` it on average.
    """
    found: dict[str, tuple[str, float, dict[str, Any]]] = {}
    measured: dict[str, list[Mapping[str, Any]]] = {}
    for entry in entries:
        if entry["status"] == OK and "contest" in entry:
            measured.setdefault(entry["contest"], []).append(entry)
    for name, group in measured.items():
        shares = {
            variant: [share_of(entry["lines"], variant) for entry in group]
            for variant in group[0]["rows"]
        }
        means = {
            variant: math.exp(sum(map(math.log, known)) / len(known))
            for variant, each in shares.items()
            if len(known := [share for share, _ in each if share]) == len(group)
            and all(share <= 1 + noise for share, noise in each)
        }
        best = min(means, key=means.__getitem__, default=None)
        if best is not None and means[best] < WORTH:
            found[name] = best, means[best], group[0]["rows"][best]
    return found


def share_of(lines: Sequence[Line], variant: str) -> tuple[float, float]:
    """A variant's time over that of ours, 0 where one was not measured; and the larger spread."""
    known = {line["peer"]: line for line in lines if line["status"] == MEASURED}
    own = known.get(FP8) if FP8 in known else known.get(OURS)
    if own is None or variant not in known:
        return 0.0, 0.0
    spreads = own["spread"], known[variant]["spread"]
    return known[variant]["median"] / own["median"], max(spreads)


def write_table(place: Place, entries: Sequence[Mapping[str, Any]], out: Path) -> None:
    """launch/ARCH.json: the rows that have won, those for few tokens before those for many."""
    arch = launch.architecture(place.device)
    path = out / "launch" / f"{arch}.json"
    rows = [row for _, _, row in winners(entries).values()]
    for row in [row for row in rows if "n" in row.get("exactly", {}) and "up_to" not in row]:
        # those of many tokens must not serve few as well; one for few that has won comes first
        dtype = torch.float8_e4m3fn if row["bytes"] == 1 else place.dtype
        kept = launch.settings(row["kernel"], place.device, dtype, rows=1, **row["exactly"])
        rows.append(plain(Row(row["kernel"], row["bytes"], {"rows": FEW}, row["exactly"], kept)))
    rows.sort(key=lambda row: "up_to" not in row)
    if rows:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = ",\n".join(json.dumps(row) for row in rows)
        path.write_text(f'{{"rows": [\n{text}\n]}}\n', encoding="utf-8")
