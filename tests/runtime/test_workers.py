"""Several devices: same rows as on one, in order, despite failures; no process is left behind."""

from __future__ import annotations

import gc
import os
import re
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from itertools import count, islice
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nomicbert import Embedder
from nomicbert.arguments import as_devices
from nomicbert.errors import BackendError, NomicBertError, TextError, WorkerError
from nomicbert.runtime import batches, dispatch, workers
from nomicbert.runtime.dispatch import Chunk, Dispatcher
from nomicbert.runtime.request import Request
from nomicbert.user_warnings import PromptWarning, TruncationWarning, WorkerWarning
from tests.runtime.test_progress import Bar, bars  # noqa: F401
from tests.support.checkpoints import build_checkpoint
from tests.support.command_line import environment, run_python
from tests.support.toy_worker import alive, processes, work
from tests.support.vocabularies import SENTENCES, WORDS

TWO = ["cpu", "cpu"]
TEXTS = [*SENTENCES, "", *WORDS[:40], "the river is long " * 12, *SENTENCES]


@pytest.fixture(autouse=True)
def nobody_is_left() -> Iterator[None]:
    yield
    gc.collect()
    assert active_children() == []


# The dispatcher, with processes that start quickly.


def chunks(texts: Iterable[str], size: int = 1) -> Iterator[Chunk]:
    texts = iter(texts)
    for number in count():
        piece = [*islice(texts, size)]
        if not piece:
            return
        yield Chunk(number, number * size, piece)


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Any]:
    def start(
        names: list[str], texts: Iterable[str], size: int = 1, together: int = 0
    ) -> Iterator[Any]:
        found = Dispatcher(names, work, str(tmp_path), together).run(chunks(texts, size))
        return (result for result, content in found if bytes(content) == b"ab")

    return start


def test_order_with_a_slow_process(run: Callable[..., Any]) -> None:
    stream = run(["slow", "b", "c"], (f"text {i}" for i in count()), 2, together=3)
    by: list[str] = []
    while by.count("slow") < 4:
        name, start, part = next(stream)
        assert start == 2 * len(by)
        assert part == [f"TEXT {start}", f"TEXT {start + 1}"]
        by.append(name)
    first = by.index("slow")
    # its result is waited for, and meanwhile the others do most of the work
    assert by[first:].count("slow") < len(by[first:]) / 2
    stream.close()


def test_no_more_processes_than_chunks(run: Callable[..., Any], tmp_path: Path) -> None:
    assert [*run(["a", "b"], [])] == []
    assert processes(tmp_path) == set()
    (found,) = run(["a", "b"], ["one"])
    assert found == ("a", 0, ["ONE"])
    assert len(processes(tmp_path)) == 1


@pytest.mark.parametrize("order", ["die-once", "half"])
def test_other_processes_take_over(order: str, run: Callable[..., Any], tmp_path: Path) -> None:
    texts = [f"text {i}" for i in range(30)]
    for place in (5, 11):
        texts[place] = f"{order} {tmp_path}/{place}"
    end = "SIGKILL" if order == "die-once" else "exit code 3"
    with pytest.warns(WorkerWarning) as told:
        found = [*run(["a", "b", "c"], texts)]
    assert [text for _, _, part in found for text in part] == [text.upper() for text in texts]
    assert len(told) == 2
    for warning in told:
        pattern = rf"the process on [abc] \({end}\) has died: the others take over its texts"
        assert re.fullmatch(pattern, str(warning.message))
        assert warning.filename == __file__


def test_interrupted_answer(tmp_path: Path) -> None:
    """No other chunk is queued in the process, so its pipe ends with the broken answer."""
    texts = [f"half {tmp_path}/one", "two"]
    stream = Dispatcher(["a", "b"], work, str(tmp_path), 2, at_a_time=1).run(chunks(texts))
    with pytest.warns(WorkerWarning, match="exit code 3"):
        found = [*stream]
    assert [part for (_, _, part), _ in found] == [[text.upper()] for text in texts]


def test_chunk_that_kills_is_not_retried_twice(run: Callable[..., Any], tmp_path: Path) -> None:
    texts = [f"text {i}" for i in range(30)]
    texts[13] = "die"
    found = []
    with (
        pytest.warns(WorkerWarning) as told,
        pytest.raises(
            WorkerError, match=r"2 .* died while they had inputs 12 to 14, .* \(SIGKILL\)"
        ),
    ):
        found += run(["a", "b", "c", "d"], texts, 3, together=4)
    assert len(told) == 1
    # the other chunks of the first process that died are cleared
    assert [start for _, start, _ in found] == [0, 3, 6, 9][: len(found)]
    assert len(processes(tmp_path)) == 4
    assert not any(map(alive, processes(tmp_path)))


def test_all_processes_died(run: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match=r"all processes have died: a \(SIGKILL\)$"):
        [*run(["a"], ["die", "two"])]
    with (
        pytest.warns(WorkerWarning, match=r"never \(exit code 7\) has died"),
        pytest.raises(WorkerError) as raised,
    ):
        [*run(["never", "never"], ["one", "two"])]
    assert "never (exit code 7), never (exit code 7); none of them started" in str(raised.value)
    assert "`if __name__ == '__main__':`" in str(raised.value)


def test_process_that_never_starts(run: Callable[..., Any]) -> None:
    with pytest.warns(WorkerWarning, match="the process on never"):
        found = [*run(["never", "b"], ["one", "alone", "three"], together=2)]
    assert [part for _, _, part in found] == [["ONE"], ["ALONE"], ["THREE"]]


def test_errors_of_a_process_are_raised(run: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(TextError, match="input 41 is bad") as raised:
        [*run(["a", "b"], ["one", "raise", "two"])]
    assert raised.value.index == 41
    assert isinstance(raised.value.__cause__, WorkerError)
    assert re.search(r"process on [ab]:\nTraceback: line 5", str(raised.value.__cause__))
    assert not any(map(alive, processes(tmp_path)))


def test_abandoned_stream(run: Callable[..., Any], tmp_path: Path) -> None:
    stream = run(["a", "b"], (f"text {i}" for i in count()))
    assert [next(stream)[1] for _ in range(40)] == [*range(40)]
    assert len(active_children()) == 2
    stream.close()
    assert not any(map(alive, processes(tmp_path)))


def test_endless_stream(run: Callable[..., Any]) -> None:
    read = 0

    def texts() -> Iterator[str]:
        nonlocal read
        for read in count(1):  # noqa: B007
            yield "x" * 10_000

    # one process is slow, so without a limit the others would run ahead of it
    stream = run(["slow", "b", "c"], texts())
    peaks = []
    for number in range(300):
        if number % 100 == 50:
            gc.collect()
            tracemalloc.start()
        next(stream)
        assert read <= number + 1 + dispatch.AHEAD * 3
        if number % 100 == 99:
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    stream.close()
    assert peaks[-1] < peaks[0] + 500_000  # 300 texts have 3 million characters


def test_failing_input_iterator(run: Callable[..., Any], tmp_path: Path) -> None:
    def texts() -> Iterator[str]:
        yield from ("one", "two", "three")
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        [*run(["a", "b"], texts())]
    assert not any(map(alive, processes(tmp_path)))


def test_suspended_process_is_killed(run: Callable[..., Any], tmp_path: Path) -> None:
    stream = run(["a", "b"], (f"text {i}" for i in count()))
    next(stream)
    for process in processes(tmp_path):
        os.kill(process, signal.SIGSTOP)
        os.waitid(os.P_PID, process, os.WSTOPPED | os.WNOWAIT)
    stream.close()
    assert not any(map(alive, processes(tmp_path)))


# Embedder.encode and encode_iter, with processes that embed.


@pytest.fixture(scope="module")
def nomic(tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    return Embedder(
        build_checkpoint(tmp_path_factory.mktemp("m"), "nomic-v1.5", num_hidden_layers=1)
    )


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small limits: chunks of a few words, windows of a few sentences."""
    monkeypatch.setattr(batches, "WINDOW_TEXTS", 16)
    monkeypatch.setattr(workers, "LEAST_CHARACTERS", 60)


def test_warnings_and_progress_of_a_call(
    nomic: Embedder,
    small: None,
    bars: list[Bar],  # noqa: F811
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Each appears once; int8 without ranges uses all rows. Bit-identical, with one thread each."""
    keywords = {"precision": "int8", "matryoshka_dim": 20, "max_length": 16}
    # no text without a prefix has been read when the processes start
    texts = [*(f"clustering: {text}" for text in WORDS[:20]), *TEXTS]
    with pytest.warns(TruncationWarning) as alone:
        wanted = nomic.encode(texts, prompt="", show_progress_bar=True, **keywords)
    single = bars.pop()
    with pytest.warns((PromptWarning, TruncationWarning)) as told:
        found = nomic.encode(texts, device=TWO, show_progress_bar=True, **keywords)
    assert [warning.category for warning in told] == [PromptWarning, TruncationWarning]
    assert str(told[1].message) == str(alone[0].message)
    assert {warning.filename for warning in told} == {__file__}
    assert "Warning" not in capfd.readouterr().err  # no process warns itself
    assert found.dtype == np.int8
    assert np.array_equal(found, wanted)
    (bar,) = bars
    assert len(bar.seen) > 8
    assert bar.seen[-1] == single.seen[-1]
    assert bar.closed


def test_killed_worker_with_flowing_chunks(
    nomic: Embedder, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on GPUs, where windows of a Stream may differ from chunks."""
    monkeypatch.setattr(workers.Workers, "_flowing", lambda self, inputs: True)
    texts = TEXTS * 5
    wanted = nomic.encode(texts, prompt="", output_value="token_embeddings")
    stream = nomic.encode_iter(texts, prompt="", device=TWO, output_value="token_embeddings")
    rows = [next(stream)]
    assert len(active_children()) == 2
    os.kill(active_children()[0].pid, signal.SIGKILL)
    with pytest.warns(WorkerWarning, match=r"on cpu \(SIGKILL\) has died"):
        rows += stream
    assert len(rows) == len(wanted)
    assert all(map(torch.equal, rows, wanted))
    assert all(row.untyped_storage().nbytes() == row.nbytes for row in rows)


def test_error_in_a_worker(nomic: Embedder, small: None) -> None:
    texts = WORDS[:40] * 4
    texts[131] = "the river is long " * 12
    with pytest.raises(TextError, match=r"^input 131 is longer than 32 tokens: sho") as raised:
        nomic.encode(texts, prompt="", truncate="error", max_length=32, device=["cpu"])
    cause = str(raised.value.__cause__)
    assert cause.startswith("in the process on cpu:\nTraceback")
    assert "runtime/stream.py" in cause


def test_backend_that_a_worker_cannot_run(nomic: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET")
    before = nomic.model.backend
    nomic.model.use("triton")  # fails only inside the process
    try:
        with pytest.raises(NomicBertError, match=r"^backend 'triton' cannot run here: ") as raised:
            nomic.encode(TEXTS, prompt="", device=["cpu"])
    finally:
        nomic.model.use(before)
    assert type(raised.value) is BackendError
    cause = str(raised.value.__cause__)
    assert cause.startswith("in the process on cpu:\nTraceback")
    assert "nomicbert_kernels.launch.BackendError: backend 'triton'" in cause


def test_nothing_to_do(nomic: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*_: Any) -> None:
        raise AssertionError("no process is needed")

    monkeypatch.setattr(Dispatcher, "_start", start)
    assert nomic.encode([], device=TWO).shape == (0, nomic.get_sentence_embedding_dimension())
    assert [*nomic.encode_iter([], device=TWO)] == []
    # nor before the first vector is requested, or if the first window has an invalid text
    nomic.encode_iter(TEXTS, device=TWO)
    with pytest.raises(TypeError, match="input 1 must be a str, not int"):
        nomic.encode(["a", 1], device=TWO)
    with pytest.raises(TextError, match="input 2 is not valid Unicode"):
        next(nomic.encode_iter(["a", "b", "\ud83d"], prompt="", device=TWO))


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        ([], "device must be one device's name or a list of them, not []"),
        (3, "device must be one device's name or a list of them, not 3"),
        ({"cpu"}, "device must be one device's name or a list of them, not {'cpu'}"),
        (["cpu", "gpu"], "unknown device 'gpu'"),
        (["cpu", "cuda:99"], "'cuda:99'"),
        (["cpu", "meta"], "the device 'meta' holds no numbers"),
        (["cpu", None], "a list of them, not ['cpu', None]"),
    ],
)
def test_invalid_devices(devices: Any, message: str, nomic: Embedder) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        nomic.encode_iter(TEXTS, device=devices)


def test_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    wanted = [torch.device("cuda:0"), torch.device("cpu"), torch.device("cuda:1")]
    assert as_devices(("cuda:0", "cpu", torch.device("cuda:1"))) == wanted
    with pytest.raises(ValueError, match="device names 'cuda:1' twice: a GPU takes one process"):
        as_devices(["cuda:1", "cuda:0", "cuda:1"])


def test_sizes_of_chunks(nomic: Embedder) -> None:
    def sizes(devices: list[str], texts: list[str], max_length: int | None = None) -> list[int]:
        stream = nomic.stream(Request(device=TWO, max_length=max_length))[0]
        assert isinstance(stream, workers.Workers)
        stream.devices = list(map(torch.device, devices))
        found = [*stream._chunks([texts], whole=stream._flowing(iter(texts)))]
        assert [text for chunk in found for text in chunk.inputs] == texts
        starts = np.cumsum([0, *(len(chunk.inputs) for chunk in found)])[:-1]
        assert [chunk.start for chunk in found] == [*starts]
        assert [chunk.number for chunk in found] == [*range(len(found))]
        return [sum(map(len, chunk.inputs)) for chunk in found]

    gpus = ["cuda:0", "cuda:1"]
    # every device gets a share of few texts; chunks of a CPU are always small
    assert sizes(gpus, ["x" * 100] * 8000) == [100_000] * 8
    assert sizes(TWO, ["x" * 100] * 8000) == [32_800] * 24 + [12_800]
    assert sizes([*gpus, "cpu"], ["x" * 100] * 8000) == [32_800] * 24 + [12_800]
    assert sizes(gpus, ["x" * 100] * 80) == [4_100, 3_900]
    assert sizes(TWO, ["x" * 9000] * 4, max_length=100) == [36_000]
    # with many texts a GPU gets whole windows, one after the other
    assert sizes(gpus, ["x" * 10] * 8 * 8192) == [655_360]


SCRIPT = """
import sys
from nomicbert import Embedder

def main():
    stream = Embedder(sys.argv[1]).encode_iter(
        ("fox " * 200 for _ in iter(int, 1)), prompt="", device=["cpu"]
    )
    for number, _ in enumerate(stream):
        if number % 100 == 0:
            print(number, flush=True)

{run}
"""


@pytest.fixture
def script(nomic: Embedder, tmp_path: Path) -> Callable[[str], list[str]]:
    nomic.save_pretrained(tmp_path / "model")

    def write(run: str) -> list[str]:
        (tmp_path / "script.py").write_text(SCRIPT.format(run=run))
        return [str(tmp_path / "script.py"), str(tmp_path / "model")]

    return write


def test_script_without_main_guard(script: Callable[[str], list[str]]) -> None:
    done = run_python(*script("main()"))
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("nomicbert.errors.WorkerError: all processes have died: cpu (exit code")
    assert "needs `if __name__ == '__main__':`" in last


def children(process: int) -> list[int]:
    return [
        int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "killed"])
def test_workers_end_with_the_caller(number: int, script: Callable[[str], list[str]]) -> None:
    guarded = script('if __name__ == "__main__":\n    main()')
    caller = subprocess.Popen(
        [sys.executable, *guarded],
        env=environment(OMP_NUM_THREADS="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert caller.stdout is not None
    assert caller.stdout.readline() == "0\n"
    others = children(caller.pid)
    assert len(others) == 2  # a worker, and multiprocessing's resource tracker
    if number == signal.SIGINT:
        os.killpg(caller.pid, number)  # like a terminal
    else:
        caller.kill()
    _, errors = caller.communicate(timeout=60)
    if number == signal.SIGINT:
        assert errors.count("Traceback") == 1  # the caller's own
        assert errors.strip().endswith("KeyboardInterrupt")
    else:
        assert errors == ""
    until = time.monotonic() + 60
    while any(map(alive, others)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(alive, others))
