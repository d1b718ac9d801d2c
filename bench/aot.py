"""Compiles every shipped launch row ahead of time, on a machine without a GPU, and holds the rules.

    python -m bench.aot --arch sm_90 --dtype bf16 --kernel swiglu

Needs triton alone, which brings its compilers along. Kernels are kept in triton's cache, so that a
second run is quick. A broken rule is named, and the exit code is 1; for gfx942, which nobody here
has run, it is a warning.
"""

import argparse
import concurrent.futures
import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bench.aot_cases import CALLS, Task
from nomicbert_kernels import launch

DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
# Rows for unknown architectures have to fit into what the smallest of them offer: sm_75, gfx9.
SAFE_SHARED = 64 * 1024
# Columns of the memory that sm_100's tensor cores sum in. Source: PTX ISA, "Tensor Memory".
TENSOR_MEMORY = 512
# A warp group's product takes 64 rows at a time. Source: PTX ISA, "wgmma.mma_async".
WGMMA_ROWS = 64
BEST_EFFORT = ("gfx942",)
NUMBERS = ("registers", "spills", "shared", "tensor_memory", "dot_rows")
USES = ("wgmma", "tensor_cores", "tma", "cp_async", "tf32")
SHORT = {"num_warps": "w", "num_stages": "s", "BLOCK_M": "M", "BLOCK_N": "N", "BLOCK_K": "K"}


def rules(record: dict[str, Any]) -> Iterator[str]:
    """Each rule that a compiled kernel breaks."""
    if record["error"]:
        yield record["error"].splitlines()[0][:160]
        return
    settings = record["settings"]
    limit = record["shared_limit"]
    if record["shared"] > limit:
        yield f"{record['shared']} bytes of shared memory, where {limit} are to be had"
    if record["tensor_memory"] > TENSOR_MEMORY:
        yield f"{record['tensor_memory']} columns of tensor memory of {TENSOR_MEMORY}"
    full, rows = record["dtype"] == "fp32", record["dot_rows"]
    precision = settings.get("PRECISION", "ieee")
    if record["tf32"] != (full and rows > 0 and precision != "ieee"):
        yield f"TF32 is {'' if record['tf32'] else 'not '}used, where PRECISION is {precision}"
    if full:
        return
    if record["spills"]:
        yield f"{record['spills']} spills"
    if rows and not record["tensor_cores"]:
        yield "a matrix product without tensor cores"
    if rows >= WGMMA_ROWS and record["arch"] == "sm_90" and not record["wgmma"]:
        yield "a matrix product without wgmma"


def uncovered(results: list[dict[str, Any]], tables: Path) -> Iterator[tuple[str, str]]:
    """(table, what is wrong) for rows of the compiled ops that no case reaches."""
    for name in sorted({result["task"].table for result in results}):
        mine = [result for result in results if result["task"].table == name]
        reached = {tuple(row) for result in mine for row in result.get("rows", [])}
        asked = {tuple(key) for result in mine for key in result.get("asked", [])}
        counts: dict[tuple[str, int], int] = {}
        for row in launch.read_table(tables / f"{name}.json"):
            key = row.kernel, row.bytes
            index = counts[key] = counts.get(key, -1) + 1
            if key in asked and (*key, index) not in reached:
                yield name, f"row {index} of {row.kernel} for {row.bytes} bytes is never launched"


def is_launch(name: str) -> bool:
    """Whether a setting says how a kernel is launched, and not for which shape."""
    known = (*launch.OPTIONS, "GROUP", "DESCRIPTORS", "FLATTEN", "PRECISION")
    return name in known or name.startswith("BLOCK_")


def summed_up(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One record for all shapes that a kernel was compiled for with the same launch settings.

    Numbers are the largest of theirs; an instruction counts as used where all of them use it.
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
            }
        )
    return summary


def describe(settings: dict[str, Any]) -> str:
    """Settings in one short line; flags that are off are left out."""
    words = []
    for name, value in settings.items():
        if value is True:
            words.append(name.lower())
        elif value is not False:
            words.append(f"{SHORT.get(name, name.lower() + '=')}{value}")
    return " ".join(words)


def tasks(options: argparse.Namespace) -> list[Task]:
    """All that is to be compiled; the safe table for every architecture."""
    pairs = []
    for name in options.arch:
        targets = launch.SHARED_MEMORY if name == launch.SAFE else [name]
        pairs += [(name, arch) for arch in targets]
    return [
        Task(table, arch, DTYPES[dtype], op, options.tables, options.quick)
        for table, arch in pairs
        for dtype in options.dtype
        for op in options.kernel
        # e4m3 is for the architectures that have rows for it, and beside hidden states of 16 bits
        if op != "fp8" or (dtype != "fp32" and has_fp8(table, options.tables))
    ]


def has_fp8(table: str, tables: Path) -> bool:
    """Whether a table has rows for elements of one byte."""
    path = tables / f"{table}.json"
    return path.is_file() and any(row.bytes == 1 for row in launch.read_table(path))


def compile_all(todo: list[Task], processes: int) -> list[dict[str, Any]]:
    """The results of all tasks, from as many processes."""
    # the interpreter would take the compiler's place; nothing has imported triton yet
    os.environ.pop("TRITON_INTERPRET", None)
    from bench.aot_worker import compile_task

    results = []
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(processes, context) as pool:
        running = {pool.submit(compile_task, task): task for task in todo}
        done = concurrent.futures.as_completed(running)
        for future in tqdm(done, total=len(todo), desc="Compiling", unit=" tasks"):
            task, failure = running[future], future.exception()
            if failure is not None:
                text = f"{task.op} on {task.arch} in {task.dtype}: {failure!r}"
                results.append({"task": task, "records": [], "failed": text})
                continue
            result = future.result()
            safe = task.table == launch.SAFE
            for record in result["records"]:
                record["shared_limit"] = SAFE_SHARED if safe else launch.SHARED_MEMORY[task.arch]
                record["dtype"] = next(k for k, v in DTYPES.items() if v == record["dtype"])
                record["triton"] = result["triton"]
                record["broken"] = list(rules(record))
            results.append({"task": task, **result})
    return results


def read_options(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.aot", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    archs = [*launch.SHARED_MEMORY, launch.SAFE]
    parser.add_argument("--arch", nargs="+", choices=archs, default=archs)
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--kernel", nargs="+", choices=CALLS, default=list(CALLS))
    parser.add_argument("--quick", action="store_true", help="one model's shapes")
    parser.add_argument("--tables", type=Path, default=launch.TABLES, help="other launch tables")
    parser.add_argument("--out", type=Path, help="write the results here: X.json, beside it X.md")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    return parser.parse_args(arguments)


def line(record: dict[str, Any]) -> str:
    """One kernel as one row of the markdown table."""
    if record["error"]:
        found = ["", "", "", "does not compile"]
    else:
        uses = [name for name in USES if record[name]]
        shared = f"{record['shared']:,} / {record['shared_limit']:,}"
        found = [str(record["registers"]), str(record["spills"]), shared, " ".join(uses)]
    names = [record[name] for name in ("arch", "dtype", "kernel")]
    names[0] += " (safe)" if record["table"] == launch.SAFE else ""
    shapes = [str(record["shapes"])] if "shapes" in record else []
    return "| " + " | ".join([*names, describe(record["settings"]), *shapes, *found]) + " |"


def report(records: list[dict[str, Any]], count: int, broken: list[str]) -> str:
    """Everything in markdown: what is broken first, then a row for each kernel and setting."""
    versions = ", ".join(sorted({record["triton"] for record in records}))
    verdict = "\n".join(f"- {text}" for text in broken) or "No rule is broken."
    title = f"# Kernels compiled ahead of time\n\ntriton {versions}, {count} kernels."
    names = "architecture dtype kernel settings shapes registers spills shared uses".split()
    rows = [f"| {' | '.join(names)} |", "|---|---|---|---|---:|---:|---:|---:|---|"]
    rows += map(line, records)
    return "\n\n".join([title, verdict, "\n".join(rows)]) + "\n"


def write(path: Path, records: list[dict[str, Any]], text: str) -> None:
    """The records, one a line, and the report beside them."""
    lines = ",\n".join(json.dumps(record) for record in records)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    path.with_suffix(".md").write_text(text, encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Compile, print, write; 1 where a rule is broken."""
    options = read_options(arguments)
    with tempfile.TemporaryDirectory() as empty:
        # what was tuned on this machine is not what ships
        os.environ["NOMICBERT_LAUNCH"] = empty
        results = compile_all(tasks(options), options.processes)
    records = sorted((r for result in results for r in result["records"]), key=line)
    broken, warned = [], []
    for record in records:
        where = " ".join([*line(record).split(" | ")[:4], f"({record['case']})"]).removeprefix("| ")
        target = warned if record["arch"] in BEST_EFFORT else broken
        target += [f"{where}: {text}" for text in record["broken"]]
    broken += [result["failed"] for result in results if "failed" in result]
    if not options.quick:
        broken += [f"{name}: {text}" for name, text in uncovered(results, options.tables)]
    summary = sorted(summed_up(records), key=line)
    text = report(summary, len(records), broken + [f"warning: {text}" for text in warned])
    print(text)
    if options.out:
        write(options.out, summary, text)
    print(f"{len(records)} kernels, {len(broken)} broken rules", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
