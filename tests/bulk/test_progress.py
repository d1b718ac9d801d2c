"""BulkProgress: what is shown, and its estimate of the time left."""

from __future__ import annotations

import json
import time

import pytest

from nomicbert.bulk.progress import BulkProgress, Form, duration


class Clock:
    """Seconds that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(time, "monotonic", found)
    return found


def run(clock: Clock, form: Form | None, **sizes: int) -> tuple[BulkProgress, list[str]]:
    """400 seconds at 100 tokens and 1 row of 500 bytes a second, said after windows of 10 rows."""
    said: list[str] = []
    with BulkProgress(form, say=said.append, **sizes) as progress:
        assert isinstance(progress, BulkProgress)
        for second in range(1, 401):
            clock.now = second
            progress.done(100)
            if second % 10 == 0:
                progress.passed(10, 5_000, 1_000)
    return progress, said


def test_lines_come_every_thirty_seconds(clock: Clock) -> None:
    progress, said = run(clock, "lines", total=1_000_000)
    assert len(said) == 13
    assert said[0] == "20 rows (1% of input), 3,000 tokens, 100 tokens/s, 32 min 50 s left"
    assert said[-1] == "380 rows (19% of input), 39,000 tokens, 100 tokens/s, 26 min 50 s left"
    assert (progress.rows, progress.tokens) == (400, 40_000)


def test_a_resumed_job_counts_what_was_there(clock: Clock) -> None:
    _, said = run(clock, "lines", total=1_000_000, left=250_000)
    assert said[0] == "20 rows (76% of input), 3,000 tokens, 100 tokens/s, 7 min 50 s left"


def test_lines_without_a_known_size(clock: Clock) -> None:
    _, said = run(clock, "lines")
    assert said[0] == "20 rows, 3,000 tokens, 100 tokens/s"


def test_json_lines(clock: Clock) -> None:
    _, said = run(clock, "json", total=1_000_000)
    assert json.loads(said[0]) == {
        "event": "progress",
        "rows": 20,
        "tokens": 3000,
        "tokens_per_second": 100.0,
        "fraction": 0.01,
        "seconds_left": 1970.0,
    }


def test_a_bar(clock: Clock, capfd: pytest.CaptureFixture[str]) -> None:
    _, said = run(clock, "bar", total=1_000_000)
    shown = capfd.readouterr().err.split("\r")[-1]
    assert "400 rows (20% of input)" in shown
    assert "40.0k/200k" in shown
    assert said == []


@pytest.mark.parametrize("form", ["none", None])
def test_silence(form: Form | None, clock: Clock, capfd: pytest.CaptureFixture[str]) -> None:
    """None means lines where there is no terminal; they go to the log if nobody takes them."""
    with BulkProgress(form, total=1000) as progress:
        clock.now = 40
        progress.done(5)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (61, "1 min 01 s"), (7265, "2 h 01 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
