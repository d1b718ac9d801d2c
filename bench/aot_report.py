"""The results of `bench.aot`, summarised: records for the JSON file and a table for people."""

import json
from typing import Any

from nomicbert_kernels import launch
from nomicbert_kernels.launch.limits import KEYS

NUMBERS = (
    "registers", "spills", "shared", "tensor_memory", "dot_rows", "instructions", "barriers",
    "warps",
)  # fmt: skip
USES = ("wgmma", "tensor_cores", "tma", "cp_async", "tf32")
# Matrix instructions, best first; "tensor_cores" is any of mma, tcgen05 and AMD's mfma.
MATRIX = ("wgmma", "tensor_cores", "none")
ABOUT = """Each row is the worst case over a kernel's variants (launch settings and shapes).
`shared` is in bytes, followed by the limit of the architecture (64 KiB for the safe table).
`CTAs` is the number of programs that a multiprocessor holds at once, `instructions` the number in
the machine code; both are for NVIDIA only. `serialised` counts the variants whose wgmma ptxas has
made serial, with the codes of its remarks.
`matrix instruction` is the one in the compiled code, with variant counts where they differ."""
SHORT = {"num_warps": "w", "num_stages": "s", "BLOCK_M": "M", "BLOCK_N": "N", "BLOCK_K": "K"}


def is_launch(name: str) -> bool:
    """Whether a setting is a launch setting rather than a property of the shape."""
    return name in KEYS or name.startswith("BLOCK_")


def summed_up(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Merge the records of a kernel's shapes that have the same launch settings.

    Counts are the maximum over the shapes; an instruction counts as used if all shapes use it.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        launched = {name: value for name, value in record["settings"].items() if is_launch(name)}
        same = {name: record[name] for name in ("table", "arch", "dtype", "kernel", "op", "triton")}
        same |= {"settings": launched, "shared_limit": record["shared_limit"]}
        groups.setdefault(json.dumps(same), []).append(record)
    summary = []
    for key, group in groups.items():
        found = [record for record in group if not record["error"]]
        errors = [record["error"] for record in group if record["error"]]
        summary.append(
            {
                **json.loads(key),
                "shapes": len(group),
                "error": errors[0] if errors else "",
                "broken": sorted({text for record in group for text in record["broken"]}),
                **{name: max((r[name] for r in found), default=0) for name in NUMBERS},
                **{name: bool(found) and all(r[name] for r in found) for name in USES},
                "ctas": min((r["ctas"] for r in found), default=0),
                "ctas_stated": max(r["ctas_stated"] for r in group),
                "remarks": sorted({code for r in found for code in r["remarks"]}),
                "serialised": sum(bool(r["remarks"]) for r in found),
                "waits": sorted({r["waits"] for r in found}),
            }
        )
    return summary


def by_kernel(summary: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Merge the records of `summed_up` to one per architecture, dtype and kernel: the worst case.

    `matrix` counts the variants by matrix instruction. Variants with the same launch settings count
    as using one if all of them do.
    """
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for record in summary:
        names = ("table", "arch", "dtype", "kernel")
        groups.setdefault(tuple(record[name] for name in names), []).append(record)
    merged = []
    for (table, arch, dtype, kernel), group in groups.items():
        found = [record for record in group if not record["error"]]
        matrix: dict[str, int] = dict.fromkeys(MATRIX, 0)
        for record in found:
            used = next((name for name in MATRIX if record.get(name)), "none")
            matrix[used] += record["shapes"]
        merged.append(
            {
                "table": table,
                "arch": arch,
                "dtype": dtype,
                "kernel": kernel,
                "variants": sum(record["shapes"] for record in group),
                "refused": sum(bool(record["error"]) for record in group),
                "shared_limit": max(record["shared_limit"] for record in group),
                "matrix": {name: count for name, count in matrix.items() if count},
                **{
                    name: max((record[name] for record in found), default=0)
                    for name in ("registers", "spills", "shared", "instructions")
                },
                "ctas": min((record["ctas"] for record in found), default=0),
                "remarks": sorted({code for record in found for code in record["remarks"]}),
                "serialised": sum(record["serialised"] for record in found),
            }
        )
    return merged


def describe(settings: dict[str, Any]) -> str:
    """Settings in one short line; flags that are off are left out."""
    words = []
    for name, value in settings.items():
        if value is True:
            words.append(name.lower())
        elif value is not False:
            words.append(f"{SHORT.get(name, name.lower() + '=')}{value}")
    return " ".join(words)


def label(record: dict[str, Any]) -> str:
    """Architecture, dtype and kernel as table cells."""
    safe = " (safe)" if record["table"] == launch.SAFE else ""
    return f"{record['arch']}{safe} | {record['dtype']} | {record['kernel']}"


def sort_key(record: dict[str, Any]) -> str:
    """Order of the records: `label`, then the launch settings."""
    return f"{label(record)} | {describe(record['settings'])}"


def line(record: dict[str, Any]) -> str:
    """A record of `by_kernel` as a row of the Markdown table."""
    matrix = record["matrix"]
    kinds = [name if len(matrix) == 1 else f"{name} {count}" for name, count in matrix.items()]
    if record["refused"]:
        kinds.append(f"{record['refused']} settings do not compile")
    serialised = "no" if "wgmma" in matrix else "-"
    if record["remarks"]:
        serialised = f"{record['serialised']} ({', '.join(record['remarks'])})"
    cells = [
        record["variants"],
        record["registers"],
        record["spills"],
        f"{record['shared']:,} / {record['shared_limit']:,}",
        record["ctas"] or "-",
        f"{record['instructions']:,}" if record["instructions"] else "-",
        serialised,
        ", ".join(kinds),
    ]
    return f"| {label(record)} | {' | '.join(map(str, cells))} |"


def report(summary: list[dict[str, Any]], broken: list[str]) -> str:
    """The Markdown report: broken rules, then one row per architecture, dtype and kernel.

    Args:
        summary: what `summed_up` returns.
        broken: the broken rules, one line each.
    """
    versions = ", ".join(sorted({record["triton"] for record in summary}))
    count = sum(record["shapes"] for record in summary)
    verdict = "\n".join(f"- {text}" for text in broken) or "No rule is broken."
    names = "architecture dtype kernel variants registers spills shared CTAs instructions".split()
    rows = [
        f"| {' | '.join(names)} | serialised | matrix instruction |",
        f"|---|---|---|{'---:|' * 6}---|---|",
    ]
    rows += map(line, by_kernel(summary))
    paragraphs = [
        "# Kernels compiled ahead of time",
        f"triton {versions}, {count} kernels.",
        verdict,
        ABOUT,
        "\n".join(rows),
    ]
    return "\n\n".join(paragraphs) + "\n"
