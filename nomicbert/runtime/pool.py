"""Processes that stay between calls, one per device: the caller's side of `pool_worker`.

Where in the flow: `workers` uses a pool in place of processes of its own. With each call the
processes get its task; the model is sent only if it is not the one that they have.
"""

import io
import pickle
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from nomicbert.modeling.prepared_weights import elements, stamp
from nomicbert.runtime.dispatch import Dispatcher, Member, started, stop
from nomicbert.runtime.graphs import Graphs
from nomicbert.runtime.pool_worker import work_for_calls
from nomicbert.runtime.shared_file import shared
from nomicbert.runtime.stream import Options, Task
from nomicbert.text.tokenizer import Tokenizer

# What a task refers to that takes long to send.
HEAVY = (nn.Module, Tokenizer, Graphs)


@dataclass(frozen=True)
class Call:
    """The message to a process before the chunks of a call.

    Attributes:
        task: pickled, without its heavy parts.
        parts: path of the heavy parts, written by torch.save; None for those of the last call.
        options: of the stream.
        flowing: as for `worker.work`.
    """

    task: bytes
    parts: str | None
    options: Options
    flowing: bool


class WorkerPool:
    """Processes for any number of calls: `encode(texts, pool=pool)`.

    Ended by `close`, at the end of a `with` block, or with this process. A call that fails or is
    ended early ends the processes that are still at work; the next call starts them anew, and they
    load the model again.

    Attributes:
        devices: one for each process.
    """

    def __init__(self, devices: Sequence[torch.device]) -> None:
        """Start the processes; they load the model with the first call."""
        self.devices = tuple(devices)
        self.threads = max(torch.get_num_threads() // len(devices), 1)
        self._members = started(list(map(str, devices)), work_for_calls, self.threads)
        self._closed = False
        self._calling = threading.Lock()
        self._changing = threading.Lock()  # of the processes and the file
        self._file = ExitStack()
        self._path = ""
        # of the parts in the file, which are kept so that nothing else gets their addresses
        self._mark = b""
        self._kept: list[Any] = []

    def __repr__(self) -> str:
        """The devices."""
        names = ", ".join(map(str, self.devices))
        return f"WorkerPool({names}{', closed' if self._closed else ''})"

    def __enter__(self) -> "WorkerPool":
        """Return the pool itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the processes."""
        self.close()

    def close(self) -> None:
        """End the processes; a second time has no effect. A call that is running then fails."""
        with self._changing:
            self._closed = True
            for member in self._members:
                member.process.kill()
            for member in self._members:
                member.process.join()
            self._members = []  # their pipes are closed when no call refers to them any more
            self._forget()

    def refuse_if_closed(self) -> None:
        """Raise a ValueError if `close` was called."""
        if self._closed:
            raise ValueError("the pool is closed: start another one")

    @contextmanager
    def call(
        self, task: Task, options: Options, flowing: bool, at_a_time: int
    ) -> Iterator[Dispatcher]:
        """The dispatcher of a call.

        Raises: ValueError: the pool is closed, or another call uses it.
        """
        self.refuse_if_closed()
        if not self._calling.acquire(blocking=False):
            raise ValueError("the pool is in use by another call, which may be a stream: end it")
        try:
            dispatcher = PoolDispatcher(self, self._message(task, options, flowing), at_a_time)
            try:
                yield dispatcher
                dispatcher.settle()
            except BaseException:
                dispatcher.abandon()
                raise
        finally:
            self._calling.release()

    def _message(self, task: Task, options: Options, flowing: bool) -> Call:
        """The message that begins a call; the model's file is written if it has changed."""
        split = SplitTask.of(task)
        with self._changing:
            self.refuse_if_closed()
            if split.mark != self._mark:
                self._forget()
                self._path = self._file.enter_context(shared(split.parts))
                self._mark, self._kept = split.mark, [*split.parts, *split.tensors]
            return Call(split.task, self._path, options, flowing)

    def _forget(self) -> None:
        """Drop the model: its addresses may be used again, so its mark means nothing any more."""
        self._file.close()
        self._path, self._mark, self._kept = "", b"", []
        for member in self._members:
            member.mark = b""

    def members(self, names: Sequence[str]) -> list[Member]:
        """Processes of these names; those that have died are started anew.

        Raises: ValueError: the pool is closed.
        """
        with self._changing:
            self.refuse_if_closed()
            living = [one for one in self._members if one.process.is_alive()]
            stop([one for one in self._members if one not in living])
            found = []
            for name in names:
                same = [one for one in living if one.name == name and one not in found]
                found += same[:1] or started([name], work_for_calls, self.threads)
            self._members = found + [one for one in living if one not in found]
            return found

    def open(self, names: Sequence[str], call: Call) -> list[Member]:
        """Begin a call in processes of these names; the model is sent to those that lack it."""
        members = self.members(names)
        for member in members:
            own = replace(call, parts=None) if member.mark == self._mark else call
            member.mark, member.ready = self._mark, False
            member.send(own)
        return members


class PoolDispatcher(Dispatcher):
    """The processes of one call, which are a pool's and stay."""

    def __init__(self, pool: WorkerPool, call: Call, at_a_time: int) -> None:
        """`call`: sent to every process before its first chunk."""
        names = list(map(str, pool.devices))
        super().__init__(names, work_for_calls, pool.threads, at_a_time=at_a_time)
        self._pool = pool
        self._call = call

    def _start(self, names: Sequence[str]) -> None:
        self.members = self._pool.open(names, self._call)

    def _stop(self) -> None:
        """The processes stay: `settle` or `abandon` comes next."""

    def _bury(self, dead: Member) -> None:
        self._pool.refuse_if_closed()
        super()._bury(dead)

    def settle(self) -> None:
        """After all results: wait for processes that may still read the model's file."""
        while not all(member.ready for member in self.members):
            self._listen(None)

    def abandon(self) -> None:
        """After an error or an early end: stop the processes that are still at work."""
        stop([member for member in self.members if member.given or not member.ready])


@dataclass(frozen=True)
class SplitTask:
    """A task in two parts, one of which is the same for most calls.

    Attributes:
        task: pickled, with numbers in place of `parts`.
        parts: what takes long to send.
        mark: changes with any of the parts. A change through `parameter.data` to a small part of a
            parameter is missed, as in `prepared_weights`.
        tensors: of the parts.
    """

    task: bytes
    parts: list[Any]
    mark: bytes
    tensors: list[Tensor]

    @classmethod
    def of(cls, task: Task) -> "SplitTask":
        """Take a task apart."""
        heavy, tensors = PartPickler(HEAVY), PartPickler((Tensor,))
        content = heavy.dumps(task)
        # others are known by their addresses, which the pool keeps: a vocabulary takes long
        modules = [part if isinstance(part, nn.Module) else _named(part) for part in heavy.parts]
        content_of = tensors.dumps(modules)
        stamps = [(stamp(tensor), _values(tensor)) for tensor in tensors.parts]
        return cls(content, heavy.parts, content_of + repr(stamps).encode(), [*tensors.parts])


class PartPickler:
    """Pickles a value with numbers in place of the objects of some classes."""

    def __init__(self, kinds: tuple[type, ...]) -> None:
        """`parts`: the objects that were left out, each once."""
        self.kinds = kinds
        self.parts: list[Any] = []

    def dumps(self, value: object) -> bytes:
        """The bytes that `pool_worker.assembled` reads."""
        file = io.BytesIO()
        pickler = pickle.Pickler(file)
        pickler.persistent_id = self._number  # type: ignore[method-assign]
        pickler.dump(value)
        return file.getvalue()

    def _number(self, thing: Any) -> int | None:
        if not isinstance(thing, self.kinds):
            return None
        for number, part in enumerate(self.parts):
            if part is thing:
                return number
        self.parts.append(thing)
        return len(self.parts) - 1


def _values(tensor: Tensor) -> bytes:
    """A few elements: a change through `tensor.data` does not change the stamp."""
    return elements(tensor).cpu().contiguous().view(torch.uint8).numpy().tobytes()


def _named(part: object) -> tuple[object, ...]:
    """The object itself, and what of it may be set."""
    return id(part), repr(part), getattr(part, "cuts_start", None)
