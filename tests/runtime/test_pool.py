"""runtime.pool: processes that stay between calls give what this process gives."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nomicbert import Embedder, TextError, WorkerWarning
from nomicbert.runtime import pool as module
from nomicbert.runtime.dispatch import Member
from nomicbert.runtime.pool import WorkerPool
from tests.support.checkpoints import build_checkpoint
from tests.support.sameness import same

TEXTS = [f"the river number {i} is {'very ' * (i % 5)}long" for i in range(40)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_checkpoint(tmp_path_factory.mktemp("e"), "conan-v1", num_hidden_layers=1)


@pytest.fixture
def embedder(folder: Path) -> Embedder:
    return Embedder(folder)


@pytest.fixture(scope="module")
def pool(folder: Path) -> Iterator[WorkerPool]:
    with Embedder(folder).start_multi_process_pool(["cpu", "cpu"]) as started:
        yield started


def processes(pool: WorkerPool) -> set[int | None]:
    return {member.process.pid for member in pool._members}


def test_calls_of_one_pool(embedder: Embedder, pool: WorkerPool) -> None:
    """Of any kind; the processes stay the same ones."""
    before = processes(pool)
    assert len(before) == 2
    for keywords in (
        {},
        {"prompt": "find: "},
        {"truncate_dim": 8, "normalize_embeddings": True},
        {"precision": "int8", "chunk_size": 4},
        {"chunk_size": 7},
        {"convert_to_tensor": True},
    ):
        found, wanted = (embedder.encode(TEXTS, **keywords, pool=p) for p in (pool, None))
        assert type(found) is type(wanted)
        assert same(np.asarray(found, np.float32), np.asarray(wanted, np.float32))
    hidden = embedder.encode(TEXTS, output_value="token_embeddings", pool=pool)
    for ours, theirs in zip(
        hidden, embedder.encode(TEXTS, output_value="token_embeddings"), strict=True
    ):
        assert same(ours.numpy(), theirs.numpy())
    assert [*embedder.encode([], pool=pool)] == []
    assert same(embedder.encode_multi_process(TEXTS, pool), embedder.encode(TEXTS))
    streamed = [*embedder.encode_iter(iter(TEXTS), pool=pool)]
    assert same(np.stack(streamed), embedder.encode(TEXTS))
    assert processes(pool) == before


def test_a_model_that_has_changed(embedder: Embedder, pool: WorkerPool, folder: Path) -> None:
    """A pool has no model of its own: parameters, modules and tokenizers are the caller's."""
    wanted = embedder.encode(TEXTS)
    assert same(embedder.encode(TEXTS, pool=pool), wanted)
    with torch.no_grad():
        embedder.model.embeddings.word.weight.mul_(1.5)
    changed = embedder.encode(TEXTS)
    assert np.abs(changed - wanted).max() > 1e-3
    assert same(embedder.encode(TEXTS, pool=pool), changed)
    embedder.pooling.include_prompt = False
    without = embedder.encode(TEXTS, prompt="find: ", pool=pool)
    assert same(without, embedder.encode(TEXTS, prompt="find: "))
    other = Embedder(folder)
    for prefix in ([], [7, 7]):  # of another tokenizer, and of the same one
        other.tokenizer.prefix = prefix
        found = other.encode(TEXTS)
        assert np.abs(found - wanted).max() > 1e-3
        assert same(other.encode(TEXTS, pool=pool), found)


def test_a_change_through_data(embedder: Embedder, pool: WorkerPool) -> None:
    """It changes neither the address nor the version of a parameter."""
    before = embedder.encode(TEXTS, pool=pool)
    for parameter in embedder.model.layers.parameters():
        parameter.data.mul_(0.5)
    found = embedder.encode(TEXTS, pool=pool)
    wanted = embedder.encode(TEXTS)
    assert np.abs(wanted - before).max() > 1e-3
    assert same(found, wanted)


def test_nothing_is_sent_twice(
    embedder: Embedder, pool: WorkerPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder.encode(TEXTS, pool=pool, chunk_size=4)
    path, sent, send = pool._path, [], Member.send

    def noted(member: Member, message: Any) -> None:
        sent.append(message)
        send(member, message)

    monkeypatch.setattr(Member, "send", noted)
    embedder.encode(TEXTS, pool=pool, chunk_size=4, prompt="find: ")
    assert pool._path == path
    assert all(member.mark == pool._mark for member in pool._members)
    # the path of a file that is written again may be the same
    assert [call.parts for call in sent if isinstance(call, module.Call)] == [None, None]


def test_a_model_that_cannot_be_written(
    embedder: Embedder, pool: WorkerPool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one before it is then written again."""
    wanted = embedder.encode(TEXTS, pool=pool)

    def full(content: object) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(module, "shared", full)
        with pytest.raises(OSError, match="no space left"):
            Embedder(folder).encode(TEXTS, pool=pool)
    pool._members[0].mark = b""  # as of a process that has started anew
    assert same(embedder.encode(TEXTS, pool=pool, chunk_size=4), wanted)


class Unloadable:
    """Can be pickled; int("a") raises when it is read."""

    def __reduce__(self) -> tuple[type[int], tuple[str]]:
        return int, ("a",)


@pytest.mark.filterwarnings("error")
def test_an_error_before_the_first_text(embedder: Embedder, pool: WorkerPool) -> None:
    """It is what the caller sees, not the end of the process that follows from it."""
    embedder.model.note = Unloadable()  # type: ignore[assignment]
    with pytest.raises(ValueError, match="invalid literal for int"):
        embedder.encode(TEXTS[:1], pool=pool)
    del embedder.model.note
    assert same(embedder.encode(TEXTS, pool=pool), embedder.encode(TEXTS))


def test_a_call_that_fails_or_ends_early(embedder: Embedder, pool: WorkerPool) -> None:
    """The next one starts processes anew."""
    limit = embedder.token_count(TEXTS[3])
    with pytest.raises(TextError) as raised:
        embedder.encode(TEXTS, pool=pool, truncate="error", max_length=limit, chunk_size=3)
    assert raised.value.index == 4
    assert same(embedder.encode(TEXTS, pool=pool), embedder.encode(TEXTS))
    stream = embedder.encode_iter(TEXTS, pool=pool, chunk_size=1)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert same(embedder.encode(TEXTS, pool=pool), embedder.encode(TEXTS))


def test_a_process_that_has_died(embedder: Embedder, pool: WorkerPool) -> None:
    embedder.encode(TEXTS, pool=pool)
    dead = pool._members[0].process
    assert dead.pid is not None
    os.kill(dead.pid, signal.SIGKILL)
    dead.join()
    assert same(embedder.encode(TEXTS, pool=pool, chunk_size=2), embedder.encode(TEXTS))
    assert dead.pid not in processes(pool)
    assert len(processes(pool)) == 2


def test_one_that_dies_during_a_call(embedder: Embedder, pool: WorkerPool) -> None:
    stream = embedder.encode_iter(TEXTS, pool=pool, chunk_size=1)
    first = next(stream)
    os.kill(pool._members[0].process.pid or 0, signal.SIGKILL)
    with pytest.warns(WorkerWarning, match="has died: the others take over"):
        rest = [*stream]
    assert same(np.stack([first, *rest]), embedder.encode(TEXTS))
    assert same(embedder.encode(TEXTS, pool=pool), embedder.encode(TEXTS))


def test_mistakes(embedder: Embedder, pool: WorkerPool) -> None:
    stream = embedder.encode_iter(TEXTS, pool=pool, chunk_size=1)
    next(stream)
    with pytest.raises(ValueError, match="the pool is in use by another call"):
        embedder.encode(TEXTS, pool=pool)
    stream.close()  # type: ignore[attr-defined]
    for wrong in ({"processes": []}, ["cpu"], 3):
        with pytest.raises(TypeError, match="pool must be what start_multi_process_pool returns"):
            embedder.encode(TEXTS, pool=wrong)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="as device, or pool, not both"):
        embedder.encode(TEXTS, pool=pool, device=["cpu"])
    with pytest.raises(ValueError, match="device must be one device's name or a list"):
        embedder.start_multi_process_pool([])
    short = embedder.start_multi_process_pool(["cpu"])
    assert repr(short) == "WorkerPool(cpu)"
    members = [*short._members]
    Embedder.stop_multi_process_pool(short)
    assert not any(member.process.is_alive() for member in members)
    short.close()
    with pytest.raises(ValueError, match="the pool is closed: start another one"):
        embedder.encode(TEXTS, pool=short)
    assert repr(short) == "WorkerPool(cpu, closed)"


def test_closed_during_a_stream(embedder: Embedder) -> None:
    with embedder.start_multi_process_pool(["cpu"]) as pool:
        stream = embedder.encode_iter(TEXTS, pool=pool, chunk_size=1)
        next(stream)
        members = [*pool._members]
    assert not any(member.process.is_alive() for member in members)
    with pytest.raises(ValueError, match="the pool is closed: start another one"):
        list(stream)
    assert all(member.connection.closed for member in members)


def test_closed_before_the_processes_get_their_call(
    embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by another thread: none is started in a closed pool, where nothing would stop it."""
    pool = embedder.start_multi_process_pool(["cpu"])
    message = pool._message

    def made_and_closed(*arguments: Any) -> module.Call:
        call = message(*arguments)
        pool.close()
        return call

    monkeypatch.setattr(pool, "_message", made_and_closed)
    with pytest.raises(ValueError, match="the pool is closed: start another one"):
        embedder.encode(TEXTS, pool=pool)
    assert pool._members == []
