"""Vectors in answers: JSON and base64 keep every bit, and long answers let others run."""

from __future__ import annotations

import asyncio
import json

import numpy as np
import pybase64
import pytest
import torch

from nomicbert.serve.http.answers import SLICE, as_json, base64, dumps, listed, numbers


def rows(seed: int, count: int) -> torch.Tensor:
    """Finite float32 values of all magnitudes, and the edges of the format."""
    draw = np.random.default_rng(seed)
    values = draw.integers(0, 2**32, (count, 40), np.uint32).view(np.float32)
    values[~np.isfinite(values)] = 1.5
    tiny, most = np.finfo(np.float32).smallest_subnormal, np.finfo(np.float32).max
    values[0, :8] = [0.0, -0.0, tiny, -tiny, most, -most, 1 / 3, np.float32(1e16) + 1]
    return torch.from_numpy(values)


def bits(values: torch.Tensor) -> np.ndarray:
    return np.ascontiguousarray(values.numpy()).view(np.uint32)


def test_json_keeps_every_bit(seed: int) -> None:
    given = rows(seed, 200)
    found = np.array(json.loads(dumps([numbers(row) for row in given])), np.float64)
    np.testing.assert_array_equal(found.astype(np.float32).view(np.uint32), bits(given))


def test_base64_keeps_every_bit(seed: int) -> None:
    given = rows(seed, 50)
    for row in (*given, given[:, 3]):  # the last one is not contiguous
        found = np.frombuffer(pybase64.b64decode(base64(row)), "<f4")
        np.testing.assert_array_equal(found.view(np.uint32), bits(row))
        again = np.array(json.loads(dumps(numbers(row)))).astype(np.float32)
        np.testing.assert_array_equal(again.view(np.uint32), bits(row))


@pytest.mark.parametrize("count", [0, 1, SLICE - 1, SLICE, SLICE + 1, 3 * SLICE + 5])
def test_a_list_in_slices(count: int) -> None:
    given = torch.arange(count * 3, dtype=torch.float32).reshape(count, 3)
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def write() -> list[bytes]:
        task = asyncio.create_task(other())
        found = await listed(
            list(given), lambda i, row: {"i": i, "row": numbers(row)}, b'{"data":[', b'],"n":1}'
        )
        task.cancel()
        return found

    answer = json.loads(b"".join(asyncio.run(write())))
    assert answer == {
        "data": [{"i": i, "row": row} for i, row in enumerate(given.tolist())],
        "n": 1,
    }
    assert turns == max(-(-count // SLICE) - 1, 0)


def test_plain_values() -> None:
    answer = as_json({"a": [1, "ü"]}, 418)
    assert (answer.status, answer.media) == (418, b"application/json")
    assert json.loads(b"".join(answer.content)) == {"a": [1, "ü"]}  # type: ignore[arg-type]
