"""Compile the kernels of every shipped launch row without a GPU, and check them against the rules.

    python -m bench.aot --arch sm_90 --dtype bf16 --kernel swiglu

Triton's wheel contains the compilers, so no CUDA or ROCm toolkit is needed; another version is used
where its folder is first in PYTHONPATH. Compiled kernels stay in Triton's cache, so a second run is
quick. The exit code is 1 if a rule is broken. On gfx942, which has never been run on hardware, a
broken rule is only a warning.

The JSON of --out has one record per kernel and launch settings. The Markdown next to it, which is
also printed, has one line per architecture, dtype and kernel.
"""

import argparse
import concurrent.futures
import json
import math
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bench.aot_cases import CALLS, Task
from bench.aot_limits import TENSOR_MEMORY, ctas
from bench.aot_report import report, sort_key, summed_up
from nomicbert_kernels import launch

DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
# Rows for unknown architectures have to fit the smallest shared memory: that of sm_75 and gfx9.
SAFE_SHARED = 64 * 1024
# wgmma computes 64 rows at a time. Source: PTX ISA, "wgmma.mma_async".
WGMMA_ROWS = 64
BEST_EFFORT = ("gfx942",)
# Kernels in which one warp holds a row of up to this width, so no warp waits for another.
ROW_KERNELS, ROW_WIDTH = ("embed_kernel", "layer_norm_kernel", "narrow_kernel"), 1024


def rules(record: dict[str, Any]) -> Iterator[str]:
    """One message for each rule that a compiled kernel breaks."""
    if record["error"]:
        yield record["error"].splitlines()[0][:160]
        return
    settings = record["settings"]
    limit = record["shared_limit"]
    if record["shared"] > limit:
        yield f"{record['shared']} bytes of shared memory, more than the limit of {limit}"
    if record["tensor_memory"] > TENSOR_MEMORY:
        yield f"{record['tensor_memory']} columns of tensor memory, more than {TENSOR_MEMORY}"
    if record["remarks"]:
        yield f"wgmma is serialised (ptxas remarks {', '.join(record['remarks'])})"
    if 0 < record["ctas"] < record["ctas_stated"]:  # 0: not known
        yield (
            f"{record['ctas']} CTAs a multiprocessor, fewer than the {record['ctas_stated']} that "
            f"the row states: {record['registers']} registers, {record['shared']} bytes of shared "
            f"memory, {record['warps']} warps"
        )
    narrow = settings.get("WIDTH", math.inf) <= ROW_WIDTH
    if record["kernel"] in ROW_KERNELS and narrow and record["barriers"]:
        yield f"{record['barriers']} barriers in a kernel whose warps own their rows"
    wanted = "first" if record["launch_pdl"] else "never"
    if record["waits"] != wanted:
        yield f"griddepcontrol.wait comes {record['waits']}, not {wanted}"
    full, rows = record["dtype"] == "fp32", record["dot_rows"]
    precision = settings.get("PRECISION", "ieee")
    if record["tf32"] != (full and rows > 0 and precision != "ieee"):
        yield f"TF32 is {'' if record['tf32'] else 'not '}used with PRECISION={precision}"
    if full:
        return
    if record["spills"]:
        yield f"{record['spills']} spills"
    if rows and not record["tensor_cores"]:
        yield "a matmul without tensor cores"
    if rows >= WGMMA_ROWS and record["arch"] == "sm_90" and not record["wgmma"]:
        yield "a matmul without wgmma"


def uncovered(results: list[dict[str, Any]], tables: Path) -> Iterator[tuple[str, str]]:
    """Yield (table, message) for each row of the compiled ops that no case reaches."""
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


def tasks(options: argparse.Namespace) -> list[Task]:
    """One task per table, architecture, dtype and op; the safe table for every architecture."""
    pairs = []
    for name in options.arch:
        targets = launch.SHARED_MEMORY if name == launch.SAFE else [name]
        pairs += [(name, arch) for arch in targets]
    return [
        Task(table, arch, DTYPES[dtype], op, options.tables, options.quick, options.pdl)
        for table, arch in pairs
        for dtype in options.dtype
        for op in options.kernel
        # e4m3 needs rows of its own in the table, and goes with 16-bit hidden states only
        if op != "fp8" or (dtype != "fp32" and has_fp8(table, options.tables))
    ]


def has_fp8(table: str, tables: Path) -> bool:
    """Whether a table has rows for 1-byte elements."""
    path = tables / f"{table}.json"
    return path.is_file() and any(row.bytes == 1 for row in launch.read_table(path))


def unreadable(names: list[str], tables: Path) -> dict[str, str]:
    """Tables with a row that cannot be launched, or that are none: name -> message."""
    found = {}
    for name in names:
        path = tables / f"{name}.json"
        try:
            if path.is_file():
                launch.read_table(path)
        except ValueError as error:
            found[name] = str(error)
    return found


def compile_all(todo: list[Task], processes: int) -> list[dict[str, Any]]:
    """Compile all tasks in worker processes and return their results."""
    # must be unset before triton is imported: the interpreter would replace the compiler
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
                if not record["error"]:
                    needs = ("registers", "shared", "warps", "tensor_memory")
                    record["ctas"] = ctas(task.arch, **{name: record[name] for name in needs})
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
    parser.add_argument("--pdl", action="store_true", help="with programmatic dependent launch")
    parser.add_argument("--tables", type=Path, default=launch.TABLES, help="other launch tables")
    parser.add_argument(
        "--out", type=Path, help="X.json: write the records there and the table to X.md"
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    return parser.parse_args(arguments)


def write(path: Path, records: list[dict[str, Any]], text: str) -> None:
    """Write the records as JSON, one per line, and the report next to it as Markdown."""
    lines = ",\n".join(json.dumps(record) for record in records)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    path.with_suffix(".md").write_text(text, encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Compile, print and write; return 1 if a rule is broken."""
    options = read_options(arguments)
    refused = unreadable(options.arch, options.tables)
    options.arch = [name for name in options.arch if name not in refused]
    with tempfile.TemporaryDirectory() as empty:
        # ignore settings tuned on this machine: only the shipped tables are checked
        os.environ["NOMICBERT_LAUNCH"] = empty
        results = compile_all(tasks(options), options.processes)
    records = sorted((r for result in results for r in result["records"]), key=sort_key)
    broken, warned = [*refused.values()], []
    for record in records:
        where = f"{sort_key(record).replace(' | ', ' ')} ({record['case']})"
        target = warned if record["arch"] in BEST_EFFORT else broken
        target += [f"{where}: {text}" for text in record["broken"]]
    broken += [result["failed"] for result in results if "failed" in result]
    if not options.quick:
        broken += [f"{name}: {text}" for name, text in uncovered(results, options.tables)]
    summary = sorted(summed_up(records), key=sort_key)
    text = report(summary, broken + [f"warning: {text}" for text in warned])
    print(text)
    if options.out:
        write(options.out, summary, text)
    print(f"{len(records)} kernels, {len(broken)} broken rules", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
