"""`bench.aot` compiles kernels for real architectures, in a subprocess: no GPU, no interpreter.

The shipped tables are checked on a subset, because all of `make aot` takes minutes. Tables with
planted faults check that the command reports each fault.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.aot import rules, unreadable
from bench.aot_report import report, summed_up
from nomicbert_kernels import launch

ROOT = Path(__file__).parents[2]
LINUX = sys.platform == "linux" and importlib.util.find_spec("triton") is not None


def compiled(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test that compiles kernels: slow, and only where Triton's compilers exist."""
    reason = "needs triton, whose compilers exist on Linux only"
    return pytest.mark.slow(pytest.mark.skipif(not LINUX, reason=reason)(test))


def compile_rows(out: Path, *options: str) -> tuple[subprocess.CompletedProcess[str], Any]:
    """Run the command for bf16; return the process and the records that it wrote."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    command = [sys.executable, "-m", "bench.aot", "--dtype", "bf16", "--out", str(out)]
    done = subprocess.run(
        [*command, *options], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    return done, json.loads(out.read_text(encoding="utf-8")) if out.exists() else []


def planted(folder: Path, arch: str, **changes: Any) -> Path:
    """Write the table of one architecture with changed swiglu rows; return its folder."""
    stored = json.loads((launch.TABLES / f"{arch}.json").read_text(encoding="utf-8"))
    rows = [
        row | changes if (row["kernel"], row["bytes"]) == ("swiglu", 2) else row
        for row in stored["rows"]
    ]
    (folder / f"{arch}.json").write_text(json.dumps({"rows": rows}), encoding="utf-8")
    return folder


# Kernels of every op, forward and backward.
KERNELS = {
    "attention_kernel",
    "embed_backward_kernel",
    "embed_kernel",
    "experts_kernel",
    "gate_backward_kernel",
    "key_gradient_kernel",
    "layer_norm_backward_kernel",
    "layer_norm_kernel",
    "linear_kernel",
    "pool_backward_kernel",
    "pool_kernel",
    "qkv_rotary_kernel",
    "query_gradient_kernel",
    "rotate_kernel",
    "route_kernel",
    "swiglu_kernel",
}
WITH_MATMUL = {
    "attention_kernel",
    "experts_kernel",
    "key_gradient_kernel",
    "linear_kernel",
    "qkv_rotary_kernel",
    "query_gradient_kernel",
    "route_kernel",
    "swiglu_kernel",
}
# Kernels with large tiles: they use wgmma and TMA on sm_90, cp.async on sm_80.
WIDE = {"qkv_rotary_kernel", "swiglu_kernel"}


def records_of_two_kernels() -> list[dict[str, Any]]:
    """Records as in the JSON file: three settings of one kernel on sm_90, one safe row."""
    base = {
        "table": "sm_90",
        "arch": "sm_90",
        "dtype": "bf16",
        "kernel": "linear_kernel",
        "triton": "3.9.0",
        "shared_limit": 1000,
        "error": "",
        "wgmma": True,
        "tensor_cores": True,
        "remarks": [],
        "serialised": 0,
    }
    worst = {"registers": 200, "spills": 0, "shared": 50, "instructions": 1200, "ctas": 2}
    best = {"registers": 90, "spills": 4, "shared": 900, "instructions": 80, "ctas": 5}
    nothing = dict.fromkeys(worst, 0)
    serial = {"remarks": ["C7515"], "serialised": 2}
    plain = {"wgmma": False, "tensor_cores": False}
    return [
        {**base, **worst, **serial, "shapes": 3},
        {**base, **best, "shapes": 2, "wgmma": False},
        {**base, **nothing, "shapes": 1, "error": "refused"},
        {**base, **worst, **plain, "table": launch.SAFE, "shapes": 1},
        {**base, **worst, "kernel": "route_kernel", "shapes": 1},
        {**base, **worst, **plain, "arch": "gfx942", "instructions": 0, "ctas": 0, "shapes": 1},
    ]


def test_report_has_the_worst_case_of_each_kernel() -> None:
    lines = report(records_of_two_kernels(), ["sm_90 bf16: 4 spills"]).splitlines()
    assert "triton 3.9.0, 9 kernels." in lines
    assert "- sm_90 bf16: 4 spills" in lines
    assert lines[-4:] == [
        "| sm_90 | bf16 | linear_kernel | 6 | 200 | 4 | 900 / 1,000 | 2 | 1,200 | 2 (C7515) "
        "| wgmma 3, tensor_cores 2, 1 settings do not compile |",
        "| sm_90 (safe) | bf16 | linear_kernel | 1 | 200 | 0 | 50 / 1,000 | 2 | 1,200 | - | none |",
        "| sm_90 | bf16 | route_kernel | 1 | 200 | 0 | 50 / 1,000 | 2 | 1,200 | no | wgmma |",
        "| gfx942 | bf16 | linear_kernel | 1 | 200 | 0 | 50 / 1,000 | - | - | - | none |",
    ]


def record(**changes: Any) -> dict[str, Any]:
    """What the worker finds of a kernel that breaks no rule."""
    sound = {
        "table": "sm_90",
        "arch": "sm_90",
        "dtype": "bf16",
        "kernel": "swiglu_kernel",
        "op": "swiglu",
        "triton": "3.9.0",
        "settings": {"WIDTH": 768},
        "shared_limit": 1000,
        "error": "",
        "broken": [],
        "registers": 128,
        "spills": 0,
        "shared": 1000,
        "tensor_memory": 512,
        "dot_rows": 64,
        "instructions": 900,
        "barriers": 0,
        "remarks": [],
        "warps": 8,
        "ctas": 2,
        "ctas_stated": 2,
        "wgmma": True,
        "tensor_cores": True,
        "tma": True,
        "cp_async": False,
        "tf32": False,
        "waits": "never",
        "launch_pdl": False,
    }
    return {**sound, **changes}


def row_kernel(name: str, **changes: Any) -> dict[str, Any]:
    """A kernel of LayerNorm, which has no matmul, with barriers."""
    return {"kernel": name, "dot_rows": 0, "barriers": 3, **changes}


BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"error": "CompilationError: at 1:2\nmore"}, "CompilationError: at 1:2"),
    ({"shared": 1001}, "1001 bytes of shared memory, more than the limit of 1000"),
    ({"tensor_memory": 640}, "640 columns of tensor memory, more than 512"),
    ({"tf32": True}, "TF32 is used with PRECISION=ieee"),
    ({"spills": 3}, "3 spills"),
    ({"tensor_cores": False}, "a matmul without tensor cores"),
    ({"wgmma": False}, "a matmul without wgmma"),
    ({"waits": "first"}, "griddepcontrol.wait comes first, not never"),
    ({"waits": "late", "launch_pdl": True}, "griddepcontrol.wait comes late, not first"),
    ({"waits": "never", "launch_pdl": True}, "griddepcontrol.wait comes never, not first"),
    ({"remarks": ["C7510", "C7515"]}, "wgmma is serialised (ptxas remarks C7510, C7515)"),
    (
        {"ctas": 1, "registers": 130},
        "1 CTAs a multiprocessor, fewer than the 2 that the row states: 130 registers, "
        "1000 bytes of shared memory, 8 warps",
    ),
    (row_kernel("layer_norm_kernel"), "3 barriers in a kernel whose warps own their rows"),
    (row_kernel("narrow_kernel"), "3 barriers in a kernel whose warps own their rows"),
    (
        row_kernel("embed_kernel", settings={"WIDTH": 1024}, dtype="fp32"),
        "3 barriers in a kernel whose warps own their rows",
    ),
]
SOUND: list[dict[str, Any]] = [
    {},
    {"barriers": 3},
    {"ctas": 3},
    {"waits": "first", "launch_pdl": True},
    {"spills": 3, "dtype": "fp32", "tensor_cores": False, "wgmma": False},
    {"wgmma": False, "arch": "sm_89"},
    {"ctas": 0, "ctas_stated": 2},
    row_kernel("layer_norm_kernel", settings={"WIDTH": 1025}),
    row_kernel("layer_norm_backward_kernel"),
]


@pytest.mark.parametrize(("changes", "message"), BROKEN)
def test_a_broken_rule_is_reported(changes: dict[str, Any], message: str) -> None:
    assert list(rules(record(**changes))) == [message]


@pytest.mark.parametrize("changes", SOUND)
def test_what_no_rule_forbids(changes: dict[str, Any]) -> None:
    assert list(rules(record(**changes))) == []


def test_a_summary_keeps_the_worst_shape() -> None:
    serial = {"remarks": ["C7515"], "broken": ["wgmma is serialised"]}
    (found,) = summed_up(
        [
            record(instructions=10, ctas=3, ctas_stated=0, barriers=2),
            record(instructions=70, ctas=1, **serial),
            record(error="refused", ctas_stated=4),
            record(instructions=20, ctas=2, remarks=["C7510"]),
        ]
    )
    assert (found["shapes"], found["instructions"], found["barriers"]) == (4, 70, 2)
    assert (found["ctas"], found["ctas_stated"]) == (1, 4)
    assert (found["remarks"], found["serialised"]) == (["C7510", "C7515"], 2)
    assert found["broken"] == ["wgmma is serialised"]


def test_a_refused_table_is_named(tmp_path: Path) -> None:
    planted(tmp_path, "sm_80", num_warps=3)
    planted(tmp_path, "sm_90")
    (tmp_path / "sm_86.json").write_text("{", encoding="utf-8")
    found = unreadable(["sm_80", "sm_86", "sm_89", "sm_90"], tmp_path)
    assert set(found) == {"sm_80", "sm_86"}
    assert "num_warps is 3, not a power of two" in found["sm_80"]
    assert "sm_86.json is not a launch table" in found["sm_86"]


@pytest.mark.parametrize("version", ["3.6.0", "3.9.0"])
def test_stored_reports_have_one_line_per_kernel(version: str) -> None:
    text = (ROOT / f"bench/results/aot-triton-{version}.md").read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in text.splitlines() if re.match(r"\| (sm_|gfx)", line)]
    assert f"triton {version}, {sum(int(row[3]) for row in rows)} kernels." in text
    assert len({tuple(row[:3]) for row in rows}) == len(rows)
    # made under the rules of today, none of which a kernel breaks but those of AMD, best effort
    assert "| CTAs | instructions | serialised | matrix instruction |" in text
    broken = [line for line in text.splitlines() if line.startswith("- ")]
    assert all(line.startswith("- warning: gfx942 ") for line in broken)
    assert {row[0].strip("| ").split()[0] for row in rows} == set(launch.SHARED_MEMORY)


@compiled
def test_shipped_rows_hold_the_rules(tmp_path: Path) -> None:
    """Of Hopper, at one model's shapes; `make aot` compiles the others."""
    done, records = compile_rows(tmp_path / "out.json", "--quick", "--arch", "sm_90")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {record["kernel"] for record in records} >= KERNELS
    # check the records themselves, not the command's own rules
    assert max(record["shared"] for record in records) <= launch.SHARED_MEMORY["sm_90"]
    assert not any(record["spills"] or record["remarks"] for record in records)
    matmuls = [record for record in records if record["dot_rows"]]
    assert {record["kernel"] for record in matmuls} >= WITH_MATMUL
    assert all(record["tensor_cores"] for record in matmuls)
    wide = [record for record in matmuls if record["kernel"] in WIDE]
    assert {record["kernel"] for record in wide} == WIDE
    assert all(record["wgmma"] and record["tma"] for record in wide)
    assert not any(record["cp_async"] for record in wide)


# One architecture per fault, so that a single run covers all of them.
FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "sm_80": (
        {"BLOCK_M": 128, "BLOCK_N": 128, "num_stages": 8},
        "bytes of shared memory, more than",
    ),
    "sm_86": ({"BLOCK_K": 8}, "CompilationError"),
    "sm_89": ({"BLOCK_M": 128, "BLOCK_N": 128, "num_warps": 4}, "spills"),
    "sm_90": ({"programs": 9}, "CTAs a multiprocessor, fewer than the 9 that the row states"),
    "sm_100": ({"BLOCK_M": 48}, "BLOCK_M is 48, not a power of two"),
    "sm_120": ({"up_to": {"rows": 64}}, "no launch settings for swiglu"),
}
# Nothing is compiled with these: the table is refused, or the launch itself fails.
NOT_COMPILED = ("sm_100", "sm_120")


@compiled
def test_planted_faults_are_reported(tmp_path: Path) -> None:
    for arch, (changes, _) in FAULTS.items():
        planted(tmp_path, arch, **changes)
    # and a row that no number of rows reaches
    stored = json.loads((tmp_path / "sm_90.json").read_text(encoding="utf-8"))
    stored["rows"].insert(0, {"kernel": "swiglu", "bytes": 2, "up_to": {"rows": 1}})
    (tmp_path / "sm_90.json").write_text(json.dumps(stored), encoding="utf-8")
    options = ("--kernel", "swiglu", "--pdl", "--tables", str(tmp_path))
    done, records = compile_rows(tmp_path / "out.json", "--arch", *FAULTS, *options)
    assert done.returncode == 1, done.stdout + done.stderr
    for arch, (_, message) in FAULTS.items():
        found = {(r["arch"], r["kernel"]): r["broken"] for r in records if r["broken"]}
        lines = [line for line in done.stdout.splitlines() if arch in line and message in line]
        assert lines, (arch, message, done.stdout)
        if arch not in NOT_COMPILED:
            assert any(message in text for text in found.pop((arch, "swiglu_kernel")))
        assert not [kernel for at, kernel in found if at == arch and kernel != "swiglu_kernel"]
    assert "sm_90: row 0 of swiglu for 2 bytes is never launched" in done.stdout
    for record in records:
        if not record["error"]:
            assert record["waits"] == ["first" if record["arch"] == "sm_90" else "never"], record
