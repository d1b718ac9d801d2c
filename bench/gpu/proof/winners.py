"""Which variants win, and the launch table made of them.

The table, launch/ARCH.json in the output folder, has the format of those of `nomicbert tune`.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from bench.gpu.place import Place
from bench.gpu.runner.ledger import OK
from nomicbert.benchmark.lines import MEASURED
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
    return {**found, **row.settings.fields}


def means(entries: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, tuple[float, bool]]]:
    """Contest -> variant -> its time relative to the shipped form, and whether it may win.

    The time is the geometric mean over the sizes. Contests that were not measured at every size
    are left out, and so are variants that are wrong or absent at one. To win, a variant is slower
    at no size by more than the spread.
    """
    found: dict[str, dict[str, tuple[float, bool]]] = {}
    for name, group in measured(entries).items():
        found[name] = {}
        for variant in group[0]["variants"]:
            shares = [share_of(entry, variant) for entry in group]
            known = [share for share, _ in shares if share]
            if len(known) == len(group):
                mean = math.exp(sum(map(math.log, known)) / len(known))
                found[name][variant] = mean, all(share <= 1 + noise for share, noise in shares)
    return found


def measured(entries: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Contest -> its cases, for contests that ended ok at all sizes."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for entry in entries:
        if entry["status"] == OK and "contest" in entry:
            found.setdefault(entry["contest"], []).append(entry)
    return {
        name: group
        for name, group in found.items()
        if len({str(entry["size"]) for entry in group}) == group[0]["sizes"]
    }


def winners(entries: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, float, dict[str, Any]]]:
    """Contest -> name of the winner, its time relative to the shipped form, and its row.

    A winner has a launch row, may win (see `means`), and its mean is at most WORTH.
    """
    rows = {name: group[0]["rows"] for name, group in measured(entries).items()}
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


def share_of(entry: Mapping[str, Any], variant: str) -> tuple[float, float]:
    """Time of a variant relative to ours, 0 if either was not measured; the larger spread."""
    known = {line["peer"]: line for line in entry["lines"] if line["status"] == MEASURED}
    own = known.get(entry["ours"])
    if own is None or variant not in known:
        return 0.0, 0.0
    spreads = own["spread"], known[variant]["spread"]
    return known[variant]["median"] / own["median"], max(spreads)


def write_table(place: Place, entries: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Write launch/ARCH.json, the rows for few tokens first; remove it if nothing has won."""
    arch = launch.architecture(place.device)
    path = out / "launch" / f"{arch}.json"
    groups, won = measured(entries), winners(entries)
    rows = [row for _, _, row in won.values()]
    for name, (_, _, row) in won.items():
        if "n" in row.get("exactly", {}) and "up_to" not in row:
            rows += shipped_below(place, row, min(entry["size"] for entry in groups[name]))
    # rows have no lower bound, so that the narrowest comes first; of equal ones, the winner
    rows.sort(key=lambda row: row.get("up_to", {}).get("rows", math.inf))
    if not rows:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    text = ",\n".join(json.dumps(row) for row in rows)
    part = path.with_suffix(".part")
    part.write_text(f'{{"rows": [\n{text}\n]}}\n', encoding="utf-8")
    part.replace(path)


def shipped_below(place: Place, row: Mapping[str, Any], least: int) -> list[dict[str, Any]]:
    """The shipped rows for fewer tokens than a winner was raced at."""
    dtype = torch.float8_e4m3fn if row["bytes"] == 1 else place.dtype
    kernel, exactly = row["kernel"], row["exactly"]
    shipped = launch.table(launch.architecture(place.device))[kernel, dtype.itemsize]
    limits = {one.up_to["rows"] for one in shipped if one.up_to.get("rows", least) < least}
    found = []
    for most in sorted({*limits, least - 1}):
        kept = launch.settings(kernel, place.device, dtype, rows=most, **exactly)
        found.append(plain(Row(kernel, row["bytes"], {"rows": most}, exactly, kept)))
    return found
