"""Kernels compiled for real architectures, in a process of its own: no GPU, no interpreter.

A part of `make aot`, whose whole takes minutes; and tables with planted faults, each of which the
command has to name.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nomicbert_kernels import launch

ROOT = Path(__file__).parents[2]
LINUX = sys.platform == "linux" and importlib.util.find_spec("triton") is not None

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not LINUX, reason="needs triton, which brings its compilers along"),
]


def compile_rows(out: Path, *options: str) -> tuple[subprocess.CompletedProcess[str], Any]:
    """Run the command for bf16; the process, and what it wrote."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    command = [sys.executable, "-m", "bench.aot", "--dtype", "bf16", "--out", str(out)]
    done = subprocess.run(
        [*command, *options], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    return done, json.loads(out.read_text(encoding="utf-8")) if out.exists() else []


def planted(folder: Path, arch: str, **changes: Any) -> Path:
    """Tables of one architecture whose rows for swiglu are changed."""
    stored = json.loads((launch.TABLES / f"{arch}.json").read_text(encoding="utf-8"))
    rows = [
        row | changes if (row["kernel"], row["bytes"]) == ("swiglu", 2) else row
        for row in stored["rows"]
    ]
    (folder / f"{arch}.json").write_text(json.dumps({"rows": rows}), encoding="utf-8")
    return folder


# Kernels of every op, those of its gradients included.
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
PRODUCTS = {
    "attention_kernel",
    "experts_kernel",
    "key_gradient_kernel",
    "linear_kernel",
    "qkv_rotary_kernel",
    "query_gradient_kernel",
    "route_kernel",
    "swiglu_kernel",
}
# Those of whole tiles, which show what a GPU of each kind has for them.
WIDE = {"qkv_rotary_kernel", "swiglu_kernel"}


def test_shipped_rows_hold_the_rules(tmp_path: Path) -> None:
    done, records = compile_rows(tmp_path / "out.json", "--quick", "--arch", "sm_80", "sm_90")
    assert done.returncode == 0, done.stdout + done.stderr
    for arch in ("sm_80", "sm_90"):
        mine = [record for record in records if record["arch"] == arch]
        assert {record["kernel"] for record in mine} >= KERNELS
        # not by the command's own judgement
        assert max(record["shared"] for record in mine) <= launch.SHARED_MEMORY[arch]
        assert not any(record["spills"] for record in mine)
        products = [record for record in mine if record["dot_rows"]]
        assert {record["kernel"] for record in products} >= PRODUCTS
        assert all(record["tensor_cores"] for record in products)
        wide = [record for record in products if record["kernel"] in WIDE]
        assert {record["kernel"] for record in wide} == WIDE
        assert all(record["wgmma"] == (arch == "sm_90") for record in wide)
        assert all(record["tma"] == (arch == "sm_90") for record in wide)
        assert all(record["cp_async"] == (arch == "sm_80") for record in wide)


# One architecture each, so that one run sees them all.
FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "sm_80": ({"BLOCK_M": 128, "BLOCK_N": 128, "num_stages": 8}, "bytes of shared memory, where"),
    "sm_86": ({"BLOCK_M": 48}, "CompilationError"),
    "sm_89": ({"BLOCK_M": 128, "BLOCK_N": 128, "num_warps": 4}, "spills"),
    "sm_120": ({"up_to": {"rows": 64}}, "no launch settings for swiglu"),
}


def test_planted_faults_are_named(tmp_path: Path) -> None:
    for arch, (changes, _) in FAULTS.items():
        planted(tmp_path, arch, **changes)
    # and a row that no size reaches
    stored = json.loads((launch.TABLES / "sm_90.json").read_text(encoding="utf-8"))
    stored["rows"].insert(0, {"kernel": "swiglu", "bytes": 2, "up_to": {"rows": 1}})
    (tmp_path / "sm_90.json").write_text(json.dumps(stored), encoding="utf-8")
    options = ("--kernel", "swiglu", "--tables", str(tmp_path))
    done, records = compile_rows(tmp_path / "out.json", "--arch", *FAULTS, "sm_90", *options)
    assert done.returncode == 1, done.stdout + done.stderr
    for arch, (_, message) in FAULTS.items():
        found = {(r["arch"], r["kernel"]): r["broken"] for r in records if r["broken"]}
        lines = [line for line in done.stdout.splitlines() if arch in line and message in line]
        assert lines, (arch, message, done.stdout)
        if arch != "sm_120":  # where the launch itself fails nothing is compiled
            assert message in found.pop((arch, "swiglu_kernel"))[0]
        assert not [kernel for at, kernel in found if at == arch and kernel != "swiglu_kernel"]
    assert "sm_90: row 0 of swiglu for 2 bytes is never launched" in done.stdout
