"""The measured size of a batch, with a clock that the test sets."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from nomicbert.serve.engine import calibrate
from nomicbert.serve.engine.calibrate import LONGEST, ROUNDS, SIZES, choose, measure_budget


class Clock:
    now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[tuple[int, float], list[int]]]:
    clock = Clock()
    monkeypatch.setattr(calibrate, "time", clock)

    def measured(
        seconds: Callable[[int], float], length: int, noise: Sequence[float] = (1.0,)
    ) -> tuple[tuple[int, float], list[int]]:
        sizes: list[int] = []

        def encode(texts: Sequence[Sequence[int]]) -> None:
            assert len(texts) < 4 or len({len(text) for text in texts}) > 1
            tokens = sum(map(len, texts))
            clock.now += seconds(tokens) * noise[len(sizes) % len(noise)]
            sizes.append(tokens)

        return measure_budget(encode, [7] * length), sizes

    return measured


def test_the_smallest_size_near_the_best_rate(
    measure: Callable[..., tuple[tuple[int, float], list[int]]],
) -> None:
    # 1 ms per batch and 0.01 ms per token: 2048 tokens have 97.7% of the rate of 4096
    found, sizes = measure(lambda tokens: 1e-3 + 1e-5 * tokens, 32)
    assert sizes == [*SIZES] * ROUNDS.stop  # in turn, not one size after another
    assert found == (4096, pytest.approx(4096 / (1e-3 + 1e-5 * 4096)))
    found, _ = measure(lambda tokens: 5e-5 + 1e-5 * tokens, 32)
    assert found == (256, pytest.approx(256 / (5e-5 + 1e-5 * 256)))
    # larger batches that are slower are not taken
    found, _ = measure(lambda tokens: tokens * (1.0 if tokens < 1024 else 2.0) * 1e-5, 32)
    assert found == (64, pytest.approx(1e5))


def test_others_that_take_the_machine_meanwhile(
    measure: Callable[..., tuple[tuple[int, float], list[int]]],
) -> None:
    quiet, _ = measure(lambda tokens: 1e-3 + 1e-5 * tokens, 32)
    busy, _ = measure(lambda tokens: 1e-3 + 1e-5 * tokens, 32, (9.0, 1.0, 3.0))
    assert busy == pytest.approx(quiet)


def test_a_slow_model_is_not_measured_for_long(
    measure: Callable[..., tuple[tuple[int, float], list[int]]],
) -> None:
    (budget, rate), sizes = measure(lambda tokens: tokens * LONGEST / 250, 32)
    assert sizes == [64, 128, 256] * ROUNDS.start  # 1.8 s each
    assert (budget, rate) == (64, pytest.approx(250))


def test_texts_longer_than_a_size(
    measure: Callable[..., tuple[tuple[int, float], list[int]]],
) -> None:
    (_, rate), sizes = measure(lambda tokens: 1e-5 * tokens, 1000)
    assert sorted(set(sizes)) == list(SIZES)
    assert rate == pytest.approx(1e5)


def test_choose() -> None:
    assert choose({64: 98.0, 128: 100.0}) == (64, 98.0)
    assert choose({64: 97.9, 128: 99.0, 256: 100.0}) == (128, 99.0)
    assert choose({64: 5.0}) == (64, 5.0)
