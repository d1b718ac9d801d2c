"""Precisions of answers: those of `encode`, with ranges that no request can change."""

from __future__ import annotations

import asyncio
import json
import math
from typing import get_args

import numpy as np
import pybase64
import pytest
import torch
import torch.nn.functional as F

from nomicbert.serve.http.answers import dumps, listed
from nomicbert.serve.http.forms import AVERAGE, SIZES, Form, unit_ranges
from nomicbert.serve.http.problems import Problem, Reason
from nomicbert.vectors.quantization import Precision, check, convert

PRECISIONS = get_args(Precision)
DTYPES = {
    "float32": "<f4", "float16": "<f2", "int8": "i1", "uint8": "u1", "binary": "i1", "ubinary": "u1"
}  # fmt: skip


def unit_rows(seed: int, count: int, width: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, width, generator=draw), dim=1)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("width", [1, 7, 64, 768, 1792])
def test_the_values_are_those_of_encode(precision: Precision, width: int, seed: int) -> None:
    rows = unit_rows(seed, 200, width)
    given = unit_ranges(width) if precision in ("int8", "uint8") else None
    wanted = convert(rows, precision, check(precision, given, width))
    form = Form(precision)
    whole = torch.stack(form.convert(list(rows)))
    assert (whole.dtype, whole.shape) == (wanted.dtype, wanted.shape)
    assert torch.equal(whole, wanted)
    # neither the other rows nor the slices matter
    assert torch.equal(torch.stack([form.convert([row])[0] for row in rows]), wanted)
    assert torch.equal(torch.stack(asyncio.run(form.convert_in_turns(list(rows)))), wanted)


@pytest.mark.parametrize("width", [1, 64, 100, 768, 1024])
def test_the_formula_of_int8(width: int, seed: int) -> None:
    rows = unit_rows(seed, 100, width).double().numpy()
    exact = rows * AVERAGE * math.sqrt(width)
    found = np.stack(
        [row.numpy() for row in Form("int8").convert(list(torch.tensor(rows).float()))]
    )
    assert np.abs(found - np.clip(exact, -128, 127)).max() <= 0.5 + 1e-4
    unsigned = Form("uint8").convert(list(torch.tensor(rows).float()))
    assert np.array_equal(np.stack([row.numpy() for row in unsigned]), found.astype(int) + 128)


def test_edges_of_int8() -> None:
    step = 1 / (AVERAGE * 8)  # of width 64
    values = [0.0, -0.0, 0.4 * step, 0.6 * step, -0.6 * step, 126.4 * step, 127 * step, -128 * step]
    row = torch.zeros(64)
    row[: len(values)] = torch.tensor(values)
    row[-2:] = torch.tensor([2.0, -2.0])  # beyond any unit vector
    found = Form("int8").convert([row])[0].tolist()
    assert found[: len(values)] == [0, 0, 0, 1, -1, 126, 127, -128]
    assert found[-2:] == [127, -128]
    assert not any(found[len(values) : -2])


@pytest.mark.parametrize("width", [64, 256, 768])
def test_int8_keeps_cosines(width: int, seed: int) -> None:
    rows = unit_rows(seed, 60, width)
    rows[1::2] = F.normalize(rows[::2] + 0.05 * rows[1::2], dim=1)  # near pairs, too
    found = torch.stack(Form("int8").convert(list(rows))).double()
    cosines = F.normalize(found, dim=1) @ F.normalize(found, dim=1).T
    # rounding moves a vector by sqrt(1 / 12) / AVERAGE of its length, in any direction; twice that
    deviation = math.sqrt(2 / 12) / AVERAGE / math.sqrt(width)
    worst = float((cosines - rows.double() @ rows.double().T).abs().max())
    assert deviation < worst < 6 * deviation


@pytest.mark.parametrize("precision", PRECISIONS)
def test_base64_and_numbers_hold_the_same_values(precision: Precision, seed: int) -> None:
    rows = list(unit_rows(seed, 3, 20))
    numbers, packed = Form(precision), Form(precision, as_base64=True)
    shown = json.loads(dumps([numbers.value(row) for row in numbers.convert(rows)]))
    bits = [pybase64.b64decode(packed.value(row)) for row in packed.convert(rows)]
    found = np.stack([np.frombuffer(each, DTYPES[precision]) for each in bits])
    assert np.array_equal(np.array(shown, np.float64).astype(found.dtype), found)
    wanted = torch.stack(numbers.convert(rows)).numpy()
    assert np.array_equal(found, wanted)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("as_base64", [True, False])
def test_the_estimate_of_an_answers_size(precision: Precision, as_base64: bool, seed: int) -> None:
    rows, form = list(unit_rows(seed, 20, 768)), Form(precision, as_base64)
    content = asyncio.run(listed(form.convert(rows), lambda _, row: form.value(row), b"[", b"]"))
    size = sum(map(len, content)) / 20 / 768
    assert 0.6 * form.value_bytes < size < 1.3 * form.value_bytes
    assert set(SIZES) == set(PRECISIONS)


def test_no_rows() -> None:
    for precision in PRECISIONS:
        assert Form(precision).convert([]) == []
        assert asyncio.run(Form(precision).convert_in_turns([])) == []


@pytest.mark.parametrize("precision", PRECISIONS)
def test_forms_for_unit_vectors_only(precision: Precision) -> None:
    Form(precision).check("embed_dtype", unit=True)
    if precision not in ("int8", "uint8"):
        Form(precision).check("embed_dtype", unit=False)
        return
    with pytest.raises(Problem, match="vectors of length 1") as caught:
        Form(precision).check("embed_dtype", unit=False)
    assert (caught.value.reason, caught.value.param) == (Reason.INVALID, "embed_dtype")


def test_values_that_float16_cannot_hold() -> None:
    row = torch.tensor([1.0, -65504.0])
    assert Form("float16").convert([row])[0].tolist() == [1.0, -65504.0]
    with pytest.raises(Problem, match="65504") as caught:
        Form("float16").convert([row, row * 2])
    assert caught.value.reason is Reason.INVALID
