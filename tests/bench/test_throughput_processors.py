"""bench/throughput_processors.py: results of several processors in one table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench import throughput_report
from bench.throughput_processors import label_of, processor, side_by_side
from nomicbert.benchmark.lines import as_json
from tests.benchmark.test_lines import line_of

INTEL = {
    "gpu": None, "cpu": "Intel", "threads": 2,
    "instructions": ["avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8"],
}  # fmt: skip
AMD = {"gpu": None, "cpu": "AMD", "threads": 1, "instructions": ["avx2", "avx_vnni"]}


def lines_of(machine: dict[str, Any], factor: float) -> list[dict[str, Any]]:
    """Ours and peers of two cases; `factor` multiplies the rates of the peers."""

    def line(peer: str, dtype: str, rate: float, **more: Any) -> dict[str, Any]:
        given = {"case": "passages", "group": dtype, "machine": machine, "cosine_min": 0.99}
        return line_of(peer, dtype, rate, **(given | more))

    return [
        line("ours", "int8", 1000.0, texts_per_second=5.0),
        line("ours-texts", "int8", 900.0, from_texts=True),
        line("ptq", "int8", 2000.0 * factor, cosine_min=0.957),
        line("weights", "int8", 500.0 * factor),
        # neither another dtype nor a wrong peer competes
        line("transformers-32", "float32", 3000.0),
        line("bad", "int8", 9000.0, status="wrong"),
        line("ours", "float32", 500.0),
        line("ours-texts", "float32", 400.0, from_texts=True),
        line("strings", "float32", 800.0 * factor, from_texts=True),
        line("ours", "float32", 80.0, case="latency-8", p50=0.1, p99=0.2),
        line("onnx", "float32", 100.0 * factor, case="latency-8", p50=0.08 / factor, p99=1.0),
    ]


def rows_of(text: str) -> list[list[str]]:
    rows = [row for row in text.splitlines() if row.startswith("| ")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_processors_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput_report.importlib.util, "find_spec", lambda _: None)
    files = [tmp_path / "intel.jsonl", tmp_path / "amd.jsonl"]
    for path, machine, factor in zip(files, (INTEL, AMD), (1.0, 0.25), strict=True):
        path.write_text(as_json(lines_of(machine, factor)))
    throughput_report.main(list(map(str, files)))
    text = (tmp_path / "processors.md").read_text("utf-8")
    assert "- A: Intel (avx2, avx512, bf16, vnni, amx), 2 threads\n" in text
    assert "- B: AMD (avx2, vnni), 1 thread\n" in text
    assert text.count("\n## m\n") == 1
    head, _, *rows = rows_of(text)
    whats = ["ours", "best", "ratio"]
    assert head == ["case", "dtype", *(f"{x} {what}" for x in "AB" for what in whats)]
    assert rows == [
        ["passages", "float32", "500 (1,800)", "transformers-32 3,000", "0.17",
         "500 (3,600)", "transformers-32 3,000", "0.17"],
        ["passages", "float32 from strings", "400 (1,800)", "strings 800", "0.50",
         "400 (3,600)", "strings 200", "2.00"],
        # on the second processor the less exact peer is faster than the exact one as well
        ["passages", "int8", "1,000 (9,000)",
         "weights 500; less exact: ptq 2,000, cosine 0.95700", "2.00",
         "1,000 (18,000)", "weights 125; less exact: ptq 500, cosine 0.95700", "8.00"],
        ["latency-8", "float32", "100 ms", "onnx 80.0 ms", "0.80",
         "100 ms", "onnx 320 ms", "3.20"],
    ]  # fmt: skip
    assert {path.name for path in tmp_path.glob("*.md")} == {
        "intel.md", "amd.md", "processors.md",
    }  # fmt: skip


def test_one_file_makes_no_comparison_unless_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(throughput_report.importlib.util, "find_spec", lambda _: None)
    path, out = tmp_path / "intel.jsonl", tmp_path / "other.md"
    path.write_text(as_json(lines_of(INTEL, 1.0)))
    throughput_report.main([str(path)])
    assert [path.name for path in tmp_path.glob("*.md")] == ["intel.md"]
    throughput_report.main([str(path), "--out", str(out)])
    assert "- A: Intel" in out.read_text("utf-8")


def test_a_case_that_one_processor_lacks() -> None:
    few = [line for line in lines_of(AMD, 1.0) if line["case"] == "latency-8"]
    rows = rows_of(side_by_side([lines_of(INTEL, 1.0), few]))
    assert [row[5:] for row in rows if row[0] == "passages"] == [["-"] * 3] * 3
    (latency,) = [row for row in rows if row[0] == "latency-8"]
    assert latency[5:] == ["100 ms", "onnx 80.0 ms", "0.80"]


def test_equal_processors_stay_apart() -> None:
    """Two files of one kind of processor, and one file with two numbers of threads."""
    text = side_by_side([lines_of(AMD, 1.0), lines_of(AMD, 2.0)])
    assert text.count("AMD (avx2, vnni), 1 thread\n") == 2
    assert "| onnx 80.0 ms | 0.80 | 100 ms | onnx 40.0 ms | 0.40 |" in text
    both = lines_of(AMD, 1.0) + lines_of(AMD | {"threads": 2}, 2.0)
    text = side_by_side([both])
    assert "- A: AMD (avx2, vnni), 1 thread\n- B: AMD (avx2, vnni), 2 threads\n" in text


def test_a_group_without_peers_does_not_hide_one_with_peers() -> None:
    """Latency may be measured with all dtypes together and in the dtype's own group."""
    own = line_of("ours", "float32", 80.0, case="latency-8", p50=0.1, group="all", machine=AMD)
    for lines in ([own, *lines_of(AMD, 1.0)], [*lines_of(AMD, 1.0), own]):
        assert "| latency-8 | float32 | 100 ms | onnx 80.0 ms | 0.80 |" in side_by_side([lines])


def test_names() -> None:
    plain = {"gpu": None, "cpu": "ARM", "threads": 2, "instructions": []}
    assert processor(line_of("ours", "int8", 1.0, machine=plain)) == "ARM (no AVX), 2 threads"
    assert processor(line_of("ours", "int8", 1.0, machine=plain | {"gpu": "H200"})) == "H200"
    assert [label_of(place) for place in (0, 25, 26, 52)] == ["A", "Z", "A1", "A2"]
