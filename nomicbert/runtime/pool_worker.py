"""A process of a pool: it receives the task of a call, then chunks of its inputs, then the next.

Where in the flow: `pool` starts it through `dispatch`. A call runs as in `worker`.
"""

import io
import pickle
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

from nomicbert.runtime.stream import Stream, Task
from nomicbert.runtime.worker import Worker, loaded, prepared, reporting


def work_for_calls(connection: Connection, name: str, threads: int) -> None:
    """Main function of a process of a pool; its arguments are those of `worker.work`."""
    worker = Worker(connection)
    with reporting(worker):
        device = prepared(name, threads)
        worker.listen()
        parts: list[Any] = []
        call = worker.wait()
        while True:
            if call.parts is not None:
                parts = loaded(call.parts, device)
            worker.begin(Stream(assembled(call.task, parts), call.options), call.flowing)
            call = worker.run()


def assembled(task: bytes, parts: Sequence[Any]) -> Task:
    """The task that `pool.PartPickler` took apart."""
    reader = pickle.Unpickler(io.BytesIO(task))
    reader.persistent_load = parts.__getitem__  # type: ignore[method-assign]
    found: Task = reader.load()
    return found
