"""The self-test in readiness: it sees another vector, and is patient with a slow engine."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from nomicbert.serve.engine import self_test as self_test_module
from nomicbert.serve.engine.compute import Replica
from nomicbert.serve.engine.engine import Engine
from nomicbert.serve.engine.self_test import SelfTest
from nomicbert.serve.models import Loaded
from nomicbert_kernels import linear_int8
from tests.support.checkpoints import build_checkpoint
from tests.support.engines import load_models, run
from tests.support.sameness import HAS_ONEDNN
from tests.support.serving import in_thread


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    where = tmp_path_factory.mktemp("models")
    return [build_checkpoint(where / name, name) for name in ("nomic-v1.5", "minilm")]


@pytest.fixture(scope="module")
def loaded(folders: list[Path]) -> Loaded:
    return load_models(*folders)


@pytest.mark.parametrize(
    "settings",
    [
        {"dtype": "bfloat16"},
        pytest.param(
            {"backend": "int8"},
            marks=pytest.mark.skipif(bool(linear_int8.why_not()), reason="int8 cannot run here"),
        ),
    ],
    ids=str,
)
def test_all_models_pass(folders: list[Path], settings: dict[str, Any]) -> None:
    chosen = load_models(*folders, **settings)

    async def scenario(engine: Engine) -> str:
        return await SelfTest(engine, chosen.models).problem()

    assert run(chosen, scenario, cache_bytes=1 << 20) == ""


def test_another_vector(loaded: Loaded) -> None:
    """One bit is enough, and the cache does not hide it."""
    first, second = loaded.models
    moved = second.self_test.clone()
    moved[3] = torch.nextafter(moved[3], torch.tensor(9.0)) if HAS_ONEDNN else moved[3] + 1
    changed = dataclasses.replace(second, self_test=moved)

    async def scenario(engine: Engine) -> None:
        good = SelfTest(engine, [first, second])
        assert await good.problem() == ""
        bad = SelfTest(engine, [first, changed])
        for _ in range(2):
            assert await bad.problem() == "the self-test of minilm gives another vector"
        bad._models = [first, second]
        assert await bad.problem() == ""  # unready, it is repeated at once

    run(loaded, scenario, cache_bytes=1 << 20)


def test_the_cache_does_not_hide_another_vector(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Replica.rows

    def moved(self: Replica, batch: list[Any]) -> list[torch.Tensor]:
        return [row + 1 for row in original(self, batch)]

    async def scenario(engine: Engine) -> None:
        assert await SelfTest(engine, loaded.models).problem() == ""
        monkeypatch.setattr(Replica, "rows", moved)
        found = await SelfTest(engine, loaded.models).problem()
        assert found == "the self-test of nomic-v1.5 gives another vector"

    run(loaded, scenario, cache_bytes=1 << 20)


def test_an_error(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_self: Replica, _batch: list[Any]) -> list[torch.Tensor]:
        raise RuntimeError("planted")

    original = Replica.rows

    async def scenario(engine: Engine) -> None:
        tested = SelfTest(engine, loaded.models)
        monkeypatch.setattr(Replica, "rows", broken)
        assert await tested.problem() == "the self-test of nomic-v1.5 failed"
        monkeypatch.setattr(Replica, "rows", original)
        assert await tested.problem() == ""

    run(loaded, scenario)


def test_it_is_repeated_after_a_while(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock:
        now = 1000.0

        def monotonic(self) -> float:
            return self.now

    clock = Clock()
    monkeypatch.setattr(self_test_module, "time", clock)

    async def scenario(engine: Engine) -> list[int]:
        tested, counts = SelfTest(engine, loaded.models), []
        for seconds in (0, self_test_module.INTERVAL, 0.001, 0):
            clock.now += seconds
            assert await tested.problem() == ""
            counts.append(engine.scheduler._arrivals)
        return counts

    assert run(loaded, scenario) == [2, 2, 4, 4]


def test_a_slow_engine_is_ready(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, original = threading.Event(), Replica.rows

    def rows(self: Replica, batch: list[Any]) -> list[torch.Tensor]:
        assert opened.wait(60)
        return original(self, batch)

    monkeypatch.setattr(Replica, "rows", rows)
    monkeypatch.setattr(self_test_module, "PROBE", 0.01)

    async def scenario(engine: Engine) -> None:
        tested = SelfTest(engine, loaded.models)
        # a probe does not wait for the test, and a second one begins no other
        for _ in range(3):
            assert await tested.problem() == ""
        tested._problem = "planted"  # unready, it is due again at once
        for _ in range(2):
            assert await tested.problem() == "planted"
        assert engine.scheduler._arrivals == 1
        tested = SelfTest(engine, loaded.models)
        await tested.run(0.01)  # gives up both
        assert await tested.problem() == ""
        opened.set()
        while engine.scheduler.waiting_texts or engine.busy_seconds():
            await asyncio.sleep(0.001)

    run(loaded, scenario)


def test_a_server_is_not_ready_then(folders: list[Path]) -> None:
    with in_thread(folders[0]) as server:
        assert server.call("/health/ready").json["reason"] == ""
        assert server.service.loaded is not None
        (model,) = server.service.loaded.models
        vector = model.self_test.clone()
        model.self_test[0] += 1
        tested = server.service._self_test
        assert tested is not None
        tested._began = -1e9
        for path in ("/health/ready", "/health", "/ping"):
            assert server.call(path).status == 503
        answer = server.call("/health/ready").json
        assert answer["reason"] == "the self-test of nomic-v1.5 gives another vector"
        assert server.call("/health/live").status == 200
        model.self_test.copy_(vector)
        assert server.call("/health/ready").status == 200
