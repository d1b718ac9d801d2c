"""The launch tables: lookup of rows, and completeness of the shipped tables."""

import ast
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.gpu import digests
from nomicbert_kernels import BackendError, launch
from nomicbert_kernels.custom_ops import on_its_device
from nomicbert_kernels.tensors import GROUP

CPU = torch.device("cpu")
KERNELS = Path(launch.__file__).parents[1]
SHIPPED = sorted(path.stem for path in launch.TABLES.glob("*.json"))
# Larger than any limit in a table.
HUGE = 10**9
# Sizes of a GEMM lookup that passes them as **sizes.
PRODUCT = {"rows", "n", "k"}
KNOWN = {"kernel", "bytes", "up_to", "exactly", "library", "programs", *launch.OPTIONS}


@pytest.fixture(autouse=True)
def only_shipped_tables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Reread the tables, and ignore any tuned on this machine."""
    monkeypatch.setenv("NOMICBERT_LAUNCH", str(tmp_path / "nothing"))
    launch.table.cache_clear()
    yield
    launch.table.cache_clear()


def row(most: int | None = None, tile: int = 16, **more: Any) -> dict[str, Any]:
    sizes = {} if most is None else {"up_to": {"rows": most}}
    return {"kernel": "swiglu", "bytes": 4, **sizes, "BLOCK_M": tile, "num_warps": 4, **more}


def use(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    *,
    shipped: dict[str, list[dict[str, Any]]],
    tuned: dict[str, list[dict[str, Any]]] | None = None,
    arch: str = "sm_90",
) -> None:
    """Use these tables, on a device of this architecture."""
    for name, tables in (("shipped", shipped), ("tuned", tuned or {})):
        (folder / name).mkdir()
        for table, rows in tables.items():
            text = json.dumps({"rows": rows})
            (folder / name / f"{table}.json").write_text(text, encoding="utf-8")
    monkeypatch.setattr(launch, "TABLES", folder / "shipped")
    monkeypatch.setattr(launch, "architecture", lambda device: arch)
    monkeypatch.setenv("NOMICBERT_LAUNCH", str(folder / "tuned"))


def tile(rows: int, dtype: torch.dtype = torch.float32, **sizes: int) -> Any:
    return launch.settings("swiglu", CPU, dtype, rows=rows, **sizes)["BLOCK_M"]


def test_a_row_is_read_into_constants_and_options() -> None:
    read = launch.read_row(row(64, 32, PRECISION="ieee", num_stages=3, maxnreg=128, library=True))
    assert read.settings.constants == {"BLOCK_M": 32, "PRECISION": "ieee"}
    assert read.settings.options == {"num_warps": 4, "num_stages": 3, "maxnreg": 128}
    assert read.settings.library
    assert read.settings.keywords(CPU) == {
        "BLOCK_M": 32,
        "PRECISION": "ieee",
        "num_warps": 4,
        "num_stages": 3,
        "maxnreg": 128,
        "enable_fp_fusion": True,
        "launch_pdl": False,
    }
    assert (read.kernel, read.bytes, read.up_to, read.exactly) == ("swiglu", 4, {"rows": 64}, {})
    assert read.settings.fields == {
        "library": True,
        "BLOCK_M": 32,
        "PRECISION": "ieee",
        "num_warps": 4,
        "num_stages": 3,
        "maxnreg": 128,
    }
    assert not launch.read_row(row()).settings.library


@pytest.mark.parametrize(
    ("arch", "overlaps"),
    [("sm_90", True), ("sm_100", True), ("sm_121", True), ("sm_89", False), ("gfx942", False),
     (launch.INTERPRETER, False)],
)  # fmt: skip
def test_launches_overlap_where_they_can(
    monkeypatch: pytest.MonkeyPatch, arch: str, overlaps: bool
) -> None:
    monkeypatch.setattr(launch, "architecture", lambda device: arch)
    read = launch.read_row(row()).settings
    assert not launch.common(CPU)["launch_pdl"]
    monkeypatch.setattr(launch, "PDL", True)
    assert launch.common(CPU)["launch_pdl"] is read.keywords(CPU)["launch_pdl"] is overlaps


def kernels() -> dict[str, ast.FunctionDef]:
    """The kernels that are launched, by name."""
    found, launched = {}, set()
    for path in KERNELS.glob("*_triton.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                found[node.name] = node
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript):
                launched.add(ast.unparse(node.func.value).rpartition(".")[2])
    return {name: found[name] for name in sorted(launched)}


KERNEL_FUNCTIONS = kernels()


def test_all_kernels_are_found() -> None:
    assert {"attention_kernel", "narrow_kernel", "pool_kernel"} <= {*KERNEL_FUNCTIONS}
    assert all(name.endswith("_kernel") for name in KERNEL_FUNCTIONS)


@pytest.mark.parametrize("name", KERNEL_FUNCTIONS)
def test_a_kernel_waits_for_the_previous_one_first(name: str) -> None:
    """`launch_pdl` has no default, so that no launch can leave it out."""
    kernel = KERNEL_FUNCTIONS[name]
    _, first = kernel.body[:2]
    assert ast.unparse(first) == "after_previous(launch_pdl)"
    args = kernel.args
    required = args.args[: len(args.args) - len(args.defaults)]
    assert "launch_pdl: tl.constexpr" in map(ast.unparse, required)


def stored(folder: Path, arch: str, *rows: dict[str, Any]) -> Path:
    """A table of these rows."""
    path = folder / f"{arch}.json"
    path.write_text(json.dumps({"rows": [*rows]}), encoding="utf-8")
    return path


LIMITS: list[tuple[str, dict[str, Any], str]] = [
    (
        "sm_90",
        {"num_warps": 64},
        "num_warps 64 is 2,048 threads, more than the 1,024 that sm_90 has for a program",
    ),
    (
        "gfx942",
        {"num_warps": 32},
        "num_warps 32 is 2,048 threads, more than the 1,024 that gfx942 has for a program",
    ),
    (
        "sm_90",
        {"maxnreg": 256},
        "maxnreg is 256, more than the 255 registers that sm_90 has for a thread",
    ),
    (
        "safe",
        {"maxnreg": 136, "num_warps": 16},
        "maxnreg 136 with num_warps 16 is 69,632 registers, more than the 65,536 that safe has",
    ),
    ("gfx942", {"maxnreg": 64}, "maxnreg exists on NVIDIA's architectures only, not on gfx942"),
    ("sm_80", {"BLOCK_M": 48}, "BLOCK_M is 48, not a power of two"),
    ("sm_80", {"num_warps": 6}, "num_warps is 6, not a power of two"),
    ("sm_80", {"num_stages": 0}, "num_stages is 0, not a positive whole number"),
    ("sm_80", {"BLOCK_K": "64"}, "BLOCK_K is '64', not a positive whole number"),
    ("sm_80", {"GROUP": True}, "GROUP is True, not a positive whole number"),
    ("sm_80", {"programs": 1.5}, "programs is 1.5, not a positive whole number"),
    ("sm_80", {"FLATTEN": 1}, "FLATTEN is 1, not true or false"),
    ("sm_80", {"library": "no"}, "library is 'no', not true or false"),
    ("sm_80", {"PRECISION": "tf33"}, "PRECISION is 'tf33', not one of ieee, tf32"),
    ("sm_80", {"bytes": 3}, "bytes is 3, not 1, 2 or 4"),
    ("sm_80", {"num_warp": 4, "BLOCKM": 16}, "unknown keys BLOCKM, num_warp: the known ones are"),
    ("sm_80", {"up_to": {"tokens": 64}}, "up_to has unknown sizes tokens: the known ones are head"),
    ("sm_80", {"exactly": {"d": 64}}, "exactly has unknown sizes d: the known ones are head_dim"),
]


@pytest.mark.parametrize(("arch", "changes", "message"), LIMITS)
def test_a_row_that_cannot_be_launched_is_refused(
    tmp_path: Path, arch: str, changes: dict[str, Any], message: str
) -> None:
    path = stored(tmp_path, arch, row(64), row() | changes, row() | changes)
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        launch.read_table(path)
    size = changes.get("bytes", 4)
    assert str(raised.value).startswith(
        f"rows[1] of {path} (swiglu, {size} bytes) cannot be launched: "
    )
    assert str(raised.value).endswith(": correct the row or delete it")


def test_a_row_may_ask_for_all_there_is(tmp_path: Path) -> None:
    most = [row(num_warps=32), row(num_warps=8, maxnreg=255), row(num_warps=16, maxnreg=128)]
    assert len(launch.read_table(stored(tmp_path, "sm_90", *most))) == 3
    assert len(launch.read_table(stored(tmp_path, "gfx942", row(num_warps=16)))) == 1


def test_a_tuned_row_that_cannot_be_launched_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tuned = {"sm_90": [row() | {"num_warps": 64}]}
    use(monkeypatch, tmp_path, shipped={"sm_90": [row()]}, tuned=tuned)
    with pytest.raises(ValueError, match=r"rows\[0\] of .*tuned/sm_90\.json \(swiglu, 4 bytes\)"):
        tile(1)


class OutOfResources(Exception):
    """Triton's, without importing triton."""

    def __init__(self, required: int, limit: int, name: str) -> None:
        self.required, self.limit, self.name = required, limit, name


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("shared memory", "bytes of shared memory"),
        ("tensor memory", "columns of tensor memory"),
        ("threads", "threads"),
    ],
)
def test_a_launch_without_enough_memory_names_its_row(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, unit: str
) -> None:
    tuned = {"sm_90": [row(8, 32), row(64, 256)]}
    use(monkeypatch, tmp_path, shipped={"sm_90": [row()]}, tuned=tuned)

    def run(x: torch.Tensor) -> None:
        tile(64)
        raise OutOfResources(300_000, 232_448, name)

    with pytest.raises(BackendError) as raised:
        on_its_device(run)(torch.empty(1))
    assert str(raised.value) == (
        f"a kernel needs 300,000 {unit}, and this device has 232,448: use smaller blocks or fewer "
        f"stages in the launch row of swiglu, rows[1] of {tmp_path}/tuned/sm_90.json"
    )
    assert isinstance(raised.value.__cause__, OutOfResources)


def test_the_error_that_names_the_row_is_of_triton() -> None:
    """Its attributes are Triton's, and other errors of a launch are left alone."""
    errors = pytest.importorskip("triton.runtime.errors")
    with pytest.raises(BackendError, match=r"needs 9 bytes of shared memory, and .* has 8"):
        launch.explain(errors.OutOfResources(9, 8, "shared memory"))
    launch.explain(ValueError("something else"))


def test_programs_per_multiprocessor() -> None:
    """They belong to the grid: the kernel does not get them."""
    read = launch.read_row(row(64, 32, FLATTEN=True, programs=2)).settings
    assert read.programs == 2
    assert "programs" not in read.keywords(CPU)
    assert read.fields["programs"] == 2
    assert launch.read_row({**row(64, 32), **read.fields}).settings == read
    assert launch.read_row(row()).settings.programs == 1


def test_the_first_row_that_fits_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rows = [row(64, 16), row(128, 32), row(96, 64), row(None, 128)]
    use(monkeypatch, tmp_path, shipped={"sm_90": rows})
    assert [tile(n) for n in (1, 64, 65, 96, 128, 129)] == [16, 16, 32, 32, 32, 128]


def test_every_size_of_up_to_and_exactly_has_to_fit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    both = row(64, 16, exactly={"n": 768})
    both["up_to"]["k"] = 512
    use(monkeypatch, tmp_path, shipped={"sm_90": [both, row(None, 128)]})
    assert tile(64, n=768, k=512) == 16
    assert tile(65, n=768, k=512) == 128
    assert tile(64, n=767, k=512) == 128
    assert tile(64, n=768, k=513) == 128


def test_rows_are_for_one_size_of_element(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rows = [row(None, 16) | {"bytes": 2}, row(None, 32)]
    use(monkeypatch, tmp_path, shipped={"sm_90": rows})
    assert tile(1, torch.bfloat16) == tile(1, torch.float16) == 16
    assert tile(1, torch.float32) == 32


def test_tuned_rows_precede_shipped_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tuned = {"sm_90": [row(64, 256)], "sm_80": [row(None, 512)]}
    use(monkeypatch, tmp_path, shipped={"sm_90": [row(None, 16)]}, tuned=tuned)
    assert tile(64) == 256
    assert tile(65) == 16


def test_an_unknown_architecture_uses_the_safe_rows_and_logs_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shipped = {"sm_90": [row(None, 16)], "safe": [row(None, 64)]}
    use(monkeypatch, tmp_path, shipped=shipped, arch="sm_75")
    with caplog.at_level(logging.INFO, logger=launch.__name__):
        assert [tile(1), tile(1)] == [64, 64]
    assert [record.message for record in caplog.records] == [
        "no launch table for sm_75: using settings that are safe everywhere"
    ]


def test_a_known_architecture_logs_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    use(monkeypatch, tmp_path, shipped={"sm_90": [row()]})
    with caplog.at_level(logging.INFO, logger=launch.__name__):
        tile(1)
    assert not caplog.records


def test_the_error_without_a_row_names_the_sizes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use(monkeypatch, tmp_path, shipped={"sm_90": [row(64)]})
    with pytest.raises(LookupError, match=r"swiglu in torch\.float32 with {'rows': 65} on sm_90"):
        tile(65)
    with pytest.raises(LookupError, match=r"gelu in torch\.float32"):
        launch.settings("gelu", CPU, torch.float32, rows=1)


def test_tuned_tables_are_in_the_cache_folder_by_default(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("NOMICBERT_LAUNCH", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert launch.tuned_folder() == tmp_path / "nomicbert" / "launch"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert launch.tuned_folder() == Path.home() / ".cache" / "nomicbert" / "launch"


def lookups() -> dict[str, tuple[str, set[str]]]:
    """Map each kernel name passed to launch.settings to its file and the names of its sizes."""
    found = {}
    for path in KERNELS.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and ast.unparse(node.func) == "launch.settings"):
                continue
            if isinstance(node.args[0], ast.Constant):
                names = {word.arg for word in node.keywords if word.arg}
                found[node.args[0].value] = (path.name, names or PRODUCT)
    return found


LOOKUPS = lookups()


def test_all_lookups_are_found() -> None:
    assert {"swiglu", "gelu", "linear", "qkv_rotary", "experts", "attention_long"} <= set(LOOKUPS)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_table_is_well_formed(name: str) -> None:
    text = (launch.TABLES / f"{name}.json").read_text(encoding="utf-8")
    rows = json.loads(text)["rows"]
    # one row per line, so that diffs are readable
    assert len(text.splitlines()) == len(rows) + 2
    for stored in rows:
        constants = {key for key in stored if key.isupper()}
        assert set(stored) - constants <= KNOWN, stored
        assert stored["bytes"] in (1, 2, 4), stored
        for key in constants:
            if key.startswith("BLOCK_"):
                assert stored[key] >= 16, stored
                assert stored[key] & (stored[key] - 1) == 0, stored
        if name != launch.INTERPRETER:
            assert {"num_warps", "num_stages"} <= set(stored), stored


@pytest.mark.parametrize("name", SHIPPED)
def test_a_table_has_a_row_for_every_kernel_and_size(name: str) -> None:
    table = launch.table(name)
    for kernel, (where, _) in LOOKUPS.items():
        for size in (2, 4):
            rows = table.get((kernel, size), [])
            assert rows, f"{name} has no row for {kernel} with {size} bytes, which {where} asks for"
            assert {**rows[-1].up_to, **rows[-1].exactly} == {}, (name, kernel, size)
    assert {kernel for kernel, _ in table} == set(LOOKUPS), name


PRODUCTS = {"linear", "qkv_rotary", "swiglu", "gelu"}


@pytest.mark.parametrize("name", SHIPPED)
def test_e4m3_has_rows_where_tensor_cores_support_it(name: str) -> None:
    rows = {kernel: rows for (kernel, size), rows in launch.table(name).items() if size == 1}
    multiplies = name in ("sm_89", "sm_90", "sm_100", "sm_120", launch.INTERPRETER)
    assert set(rows) == (PRODUCTS if multiplies else set())
    for kernel, found in rows.items():
        assert {**found[-1].up_to, **found[-1].exactly} == {}, (name, kernel)
        for row in found:
            # a program quantises the columns that share a scale, and steps do not cross groups
            assert row.settings["BLOCK_N"] == GROUP or kernel in ("linear", "qkv_rotary")
            assert GROUP % row.settings["BLOCK_K"] == 0
            assert not row.settings.library


@pytest.mark.parametrize("name", SHIPPED)
def test_rows_use_the_sizes_of_their_kernel_and_all_are_reachable(name: str) -> None:
    for (kernel, _), rows in launch.table(name).items():
        sizes = LOOKUPS[kernel][1]
        for i, row in enumerate(rows):
            assert {*row.up_to, *row.exactly} <= sizes, (kernel, row)
            largest = dict.fromkeys(sizes, HUGE) | dict(row.up_to) | dict(row.exactly)
            assert not any(earlier.fits(largest) for earlier in rows[:i]), (name, kernel, i)


@pytest.mark.parametrize("name", sorted({*SHIPPED} - {launch.INTERPRETER}))
def test_heads_of_up_to_128_lie_within_a_tile(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the kernel of the projection rotates them, whatever the number of rows."""
    monkeypatch.setattr(launch, "architecture", lambda device: name)
    for dtype in (torch.float8_e4m3fn, torch.bfloat16, torch.float32):
        if ("qkv_rotary", dtype.itemsize) in launch.table(name):
            for head in (32, 64, 128):
                for rows in (1, 64, 65, 896, 897, HUGE):
                    sizes = {"rows": rows, "n": 2304, "k": 768, "head_dim": head}
                    s = launch.settings("qkv_rotary", CPU, dtype, **sizes)
                    assert s["BLOCK_N"] % head == 0, (dtype, sizes)


def test_every_architecture_with_a_limit_has_a_table() -> None:
    assert set(SHIPPED) == {*launch.SHARED_MEMORY, launch.SAFE, launch.INTERPRETER}


@pytest.mark.parametrize("name", sorted({*SHIPPED} - {"sm_90", "sm_100", "sm_120", "interpreter"}))
def test_descriptors_are_for_machines_that_have_them(name: str) -> None:
    rows = launch.read_table(launch.TABLES / f"{name}.json")
    assert not any(row.settings.constants.get("DESCRIPTORS") for row in rows)


@pytest.mark.parametrize("name", sorted({*SHIPPED} - {"interpreter"}))
def test_full_precision_is_the_rule(name: str) -> None:
    for row in launch.read_table(launch.TABLES / f"{name}.json"):
        assert row.settings["PRECISION"] == "ieee", row


@pytest.mark.parametrize(
    ("arch", "name"),
    [("sm_90", "sm_90"), ("sm_121", "sm_120"), ("sm_103", "sm_100"), ("sm_87", "sm_86"),
     ("sm_75", "safe"), ("gfx1100", "safe")],
)  # fmt: skip
def test_relatives_share_a_table(arch: str, name: str) -> None:
    assert launch.shipped(arch).stem == name
    assert launch.shipped(arch).is_file()


def unproven(tables: Path) -> Iterator[str]:
    """Tables marked as proven, but not by a run of the current kernels and rows."""
    for path in sorted(tables.glob("*.json")):
        stored = json.loads(path.read_text("utf-8"))
        by = stored.get("by", {})
        rows = {digests.row_digest(row) for row in stored["rows"]}
        same = by.get("sources") == digests.sources() and rows <= {*by.get("rows", [])}
        if stored.get("proven") and not same:
            yield path.stem


def test_proven_tables_name_a_run_of_these_kernels() -> None:
    """`auto` uses the kernels where a table is marked as proven, so a mark needs a run."""
    assert not list(unproven(launch.TABLES))


def test_stated_programs_are_a_setting_of_persistent_kernels_only() -> None:
    one, two = row(8), row(64, programs=2)
    assert digests.row_digest(one) == digests.row_digest(two)
    flat = {"FLATTEN": True}
    assert digests.row_digest(one | flat) != digests.row_digest(two | flat)
    assert digests.row_digest(one) != digests.row_digest(one | {"num_warps": 8})


def test_a_mark_without_a_run_is_found(tmp_path: Path) -> None:
    row = {"kernel": "swiglu", "bytes": 2}
    good = {"sources": digests.sources(), "rows": [digests.row_digest(row)]}
    for arch, by in {
        "sm_1": good,
        "sm_2": good | {"sources": "0"},
        "sm_3": good | {"rows": []},
        "sm_4": {},
    }.items():
        stored = {"proven": True, "by": by, "rows": [row]}
        (tmp_path / f"{arch}.json").write_text(json.dumps(stored))
    (tmp_path / "sm_5.json").write_text('{"rows": []}')
    assert list(unproven(tmp_path)) == ["sm_2", "sm_3", "sm_4"]
