"""Tables of tuned launch settings: how they are written, merged and read."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nomicbert_kernels import launch
from nomicbert_kernels.launch import Settings
from nomicbert_kernels.tuning import tables
from nomicbert_kernels.tuning.candidates import template_of
from nomicbert_kernels.tuning.problems import Model, Problem
from nomicbert_kernels.tuning.search import Result
from tests.ops.tuning_cases import ARCH, CPU, PLAIN, only, small, varied  # noqa: F401

pytest.importorskip("triton", minversion="3.6")


def result_of(problem: Problem, chosen: Settings | None, us: float = 5.0) -> Result:
    shipped = template_of(problem, tables.shipped_rows(ARCH, 4))
    return Result(problem, shipped, 10.0, us, 0.1, chosen, 3, 0, ())


def both(kernel: str, *models: Model) -> tuple[Problem, Problem]:
    """Results for few rows and for many."""
    return only(kernel, *models, rows=8), only(kernel, *models, rows=20)


ABOUT = {"device": "a device", "triton": "3.9.0"}


def look_up(rows: int, n: int = 48, k: int = 32, kernel: str = "swiglu") -> Settings:
    return launch.settings(kernel, CPU, torch.float32, rows=rows, n=n, k=k)


def write(results: Sequence[Result], triton: str = "3.9.0") -> Path:
    earlier = tables.read_tuned(ARCH, triton)
    return tables.write(ARCH, tables.merge(results, earlier, 4, triton), ABOUT)


def test_written_rows_are_read_first() -> None:
    few, many = both("swiglu")
    shipped = look_up(20)
    first, second = varied(many, GROUP=(5, 6))
    path = write([result_of(few, first), result_of(many, second)])
    assert path == launch.tuned_folder() / "interpreter.json"
    assert [look_up(rows) for rows in (1, 8, 9, 5000)] == [first, first, second, second]
    assert look_up(20, n=49) == shipped
    assert launch.settings("swiglu", CPU, torch.float16, rows=8, n=48, k=32) != first
    stored = json.loads(path.read_text())
    assert {key: stored[key] for key in ABOUT} == ABOUT
    assert (stored["rows"][0]["us"], stored["rows"][0]["shipped_us"]) == (5.0, 10.0)


def test_the_library_is_written_too() -> None:
    (few, many), shipped = both("swiglu"), look_up(20)
    library = replace(shipped, library=True)
    write([result_of(few, None), result_of(many, library)])
    assert look_up(9) == library
    assert look_up(8) == shipped  # the row with the larger limit would otherwise apply here too


def test_kept_settings_are_not_written() -> None:
    """So later shipped tables take effect."""
    few, many = both("swiglu")
    (faster,) = varied(many, GROUP=(5,))
    path = write([result_of(few, faster), result_of(many, None)])
    assert [row.get("up_to") for row in json.loads(path.read_text())["rows"]] == [{"rows": 8}]
    assert look_up(9) == template_of(many, tables.shipped_rows(ARCH, 4))
    write([result_of(few, None), result_of(many, None)])
    assert json.loads(path.read_text())["rows"] == []


def test_sizes_that_were_not_measured_stay() -> None:
    few, many = both("swiglu")
    other = only("gelu", PLAIN)
    (five,), (six,), (seven,) = (
        varied(p, GROUP=(g,)) for p, g in ((many, 5), (many, 6), (other, 7))
    )
    write([result_of(few, five), result_of(many, five)])
    write([result_of(other, seven)])
    assert look_up(9) == five
    write([result_of(few, None), result_of(many, six)])
    assert (look_up(9), look_up(9, kernel="gelu")) == (six, seven)


def test_a_user_row_for_all_sizes_comes_last() -> None:
    """First, it would hide the row measured for one size."""
    problem = only("swiglu")
    (five,) = varied(problem, GROUP=(5,))
    own = {"kernel": "swiglu", "bytes": 4, **five.fields, "GROUP": 9}
    tables.write(ARCH, [own], ABOUT)
    write([result_of(problem, five)])
    assert look_up(20) == five
    assert look_up(20, n=49)["GROUP"] == 9


def test_attention_has_one_row_for_all() -> None:
    problem = only("attention_short", rows=None)
    (chosen,) = varied(problem, BLOCK_N=(16,))
    write([result_of(problem, chosen)])
    assert launch.settings("attention_short", CPU, torch.float32, head_dim=16) == chosen
    assert launch.settings("attention_short", CPU, torch.float32, head_dim=64) != chosen


def test_rows_of_another_triton_are_named(caplog: pytest.LogCaptureFixture) -> None:
    problem = only("swiglu")
    (chosen,) = varied(problem, GROUP=(5,))
    path = write([result_of(problem, chosen)], triton="3.6.0")
    caplog.clear()
    assert tables.read_tuned(ARCH, "3.6.0")
    assert not caplog.messages
    assert tables.read_tuned(ARCH, "3.9.0")
    (message,) = caplog.messages
    assert str(path) in message
    assert "3.6.0" in message
    assert "this is triton 3.9.0" in message
    assert look_up(20) == chosen


@pytest.mark.parametrize("at", ["write", "fsync", "replace"])
def test_killed_while_writing_keeps_the_old_table(at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = only("swiglu")
    five, six = varied(problem, GROUP=(5, 6))
    path = write([result_of(problem, five)])
    old = path.read_bytes()

    def killed(*args: Any) -> None:
        raise SystemExit(143)

    with monkeypatch.context() as patch:
        if at == "write":
            patch.setattr(json, "dumps", killed)
        else:
            patch.setattr(os, at, killed)
        with pytest.raises(SystemExit):
            write([result_of(problem, six)])
    assert path.read_bytes() == old
    assert [*path.parent.iterdir()] == [path]
    assert look_up(20) == five


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("NOMICBERT_LAUNCH", str(tmp_path / "file/launch"))
    with pytest.raises(OSError, match="NOMICBERT_LAUNCH") as raised:
        tables.check_writable(ARCH)
    assert raised.value.filename == str(tmp_path / "file/launch/interpreter.json")


def test_the_check_leaves_no_file() -> None:
    tables.check_writable(ARCH)
    assert [*launch.tuned_folder().iterdir()] == []


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"rows": 3}', '{"rows": [3]}', '{"rows": [{"bytes": 2}]}']
)
def test_a_broken_table_is_named(text: str) -> None:
    path = launch.tuned_folder() / "interpreter.json"
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(ValueError, match="is not a launch table") as raised:
        tables.read_tuned(ARCH, "3.9.0")
    assert str(path) in str(raised.value)
