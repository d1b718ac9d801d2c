"""300 random bodies; `python -m tests.serve.bodies --cases 10000` sends more."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from hypothesis import Phase

from nomicbert.serve.app import PAGES
from nomicbert.serve.dialects import openai
from tests.serve.bodies import ROUTES, run, small_server


def test_random_bodies(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    with small_server(tmp_path) as server:
        bodies = run(server, 300)
        assert server.metric("nomicbert_internal_errors_total") == 0
        assert server.metric("nomicbert_outcomes_total", outcome="failed") == 0
    # neither all are right nor all are wrong
    right = sum(count for (_, status), count in bodies.counts.items() if status == 200)
    assert 50 < right < sum(bodies.counts.values()) - 50
    assert len({route for route, _ in bodies.counts}) > 10


def test_every_route_gets_bodies() -> None:
    assert {page.path for page in PAGES if page.method == "POST"} == set(ROUTES)


def test_a_bug_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> object:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(openai, "as_inputs", broken)
    found = pytest.raises(Exception, match=r"500|traceback|failures")
    with small_server(tmp_path) as server, found:
        run(server, 5000, [Phase.generate])  # ends with the first body that gets there
