"""`Exchange.wait`: results, deadlines and clients that leave, without traces in the loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from nomicbert.serve.http import exchange as exchange_module
from nomicbert.serve.http.exchange import Bodies, Exchange
from nomicbert.serve.http.problems import ClientGone, Problem, Reason


class Client:
    """The messages of a client, for an Exchange."""

    def __init__(self) -> None:
        self.messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.reads = 0

    async def receive(self) -> dict[str, Any]:
        self.reads += 1
        return await self.messages.get()

    def leave(self) -> None:
        self.messages.put_nowait({"type": "http.disconnect"})

    def exchange(self) -> Exchange:
        scope = {"type": "http", "headers": [], "query_string": b""}
        return Exchange(scope, self.receive, Bodies(1 << 20))


def run(scenario: Callable[[Client], Coroutine[Any, Any, None]]) -> None:
    """Run a scenario; it fails by errors in callbacks, and by tasks and timers that are left."""
    seen: list[dict[str, Any]] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: seen.append(context))
        await scenario(Client())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left
        timers: list[asyncio.TimerHandle] = loop._scheduled  # type: ignore[attr-defined]
        assert all(timer.cancelled() for timer in timers)

    asyncio.run(main())
    assert not seen


def test_a_result_and_an_error() -> None:
    async def scenario(client: Client) -> None:
        exchange, loop = client.exchange(), asyncio.get_running_loop()
        future = loop.create_future()
        loop.call_later(0.001, future.set_result, 7)
        assert await exchange.wait(future, 60) == 7
        future = loop.create_future()
        loop.call_later(0.001, future.set_exception, KeyError("own"))
        with pytest.raises(KeyError, match="own"):
            await exchange.wait(future, 60)
        assert client.reads == 0  # short waits do not read beyond the body

    run(scenario)


def test_a_deadline_cancels_the_work() -> None:
    async def scenario(client: Client) -> None:
        future = asyncio.get_running_loop().create_future()
        with pytest.raises(Problem, match=r"not computed within 0\.02 s") as caught:
            await client.exchange().wait(future, 0.02)
        assert caught.value.reason is Reason.DEADLINE
        assert caught.value.retry_after == 1.0
        assert future.done()

    run(scenario)


@pytest.mark.parametrize("watch", [True, False])
def test_a_client_that_leaves(monkeypatch: pytest.MonkeyPatch, watch: bool) -> None:
    monkeypatch.setattr(exchange_module, "WATCH_AFTER", 0.001)

    async def scenario(client: Client) -> None:
        future = asyncio.get_running_loop().create_future()
        client.messages.put_nowait({"type": "http.request"})  # not the end
        client.leave()
        if watch:
            with pytest.raises(ClientGone):
                await client.exchange().wait(future, 60)
            assert future.done()
        else:
            with pytest.raises(Problem):
                await client.exchange().wait(future, 0.05, watch=False)
            assert client.reads == 0

    run(scenario)


def test_a_cancelled_handler_cancels_the_work() -> None:
    async def scenario(client: Client) -> None:
        future = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(client.exchange().wait(future, 60))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert future.cancelled()

    run(scenario)


@pytest.mark.parametrize("gone", [True, False])
def test_work_of_a_thread_that_ends_too_late(monkeypatch: pytest.MonkeyPatch, gone: bool) -> None:
    monkeypatch.setattr(exchange_module, "WATCH_AFTER", 0.001)
    release = threading.Event()

    async def scenario(client: Client) -> None:
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1) as pool:
            future = loop.run_in_executor(pool, release.wait, 60)
            behind = loop.run_in_executor(pool, int)
            if gone:
                client.leave()
            with pytest.raises(ClientGone if gone else Problem):
                await client.exchange().wait(future, 60 if gone else 0.02)
            release.set()
            assert await behind == 0

    run(scenario)
