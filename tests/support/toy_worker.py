"""A process that speaks the messages of `dispatch` and needs no torch, so that it starts at once.

It answers a chunk with the texts in capital letters, and obeys those that are orders.
"""

from __future__ import annotations

import os
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from nomicbert.errors import TextError
from nomicbert.runtime.dispatch import FAILED, READY, Chunk, answer


def work(connection: Connection, name: str, folder: str, together: int) -> None:
    """Leaves a file with its process id in `folder`; "slow" is a name that works slowly.

    It begins when so many of them are there.
    """
    Path(folder, f"{os.getpid()}.pid").touch()
    while len(processes(folder)) < together:
        time.sleep(0.005)
    if name == "never":
        os._exit(7)
    connection.send((READY,))
    while True:
        chunk: Chunk = connection.recv()
        if name == "slow":
            time.sleep(0.03)
        for text in chunk.inputs:
            obey(text, connection, folder)
        shouted = [text.upper() for text in chunk.inputs]
        answer(connection, (name, chunk.start, shouted), np.frombuffer(b"ab", np.uint8))


def processes(folder: str | Path) -> set[int]:
    """The ids of those that were started."""
    return {int(path.stem) for path in Path(folder).glob("*.pid")}


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def obey(text: str, connection: Connection, folder: str) -> None:
    order, _, rest = text.partition(" ")
    if order == "alone":  # the caller has seen that the others died
        while any(map(alive, processes(folder) - {os.getpid()})):
            time.sleep(0.005)
    if order == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if order == "die-once":  # the file says that someone has
        try:
            Path(rest).touch(exist_ok=False)
        except FileExistsError:
            return
        os.kill(os.getpid(), signal.SIGKILL)
    if order == "half":  # an answer is begun, and the process dies over it
        try:
            Path(rest).touch(exist_ok=False)
        except FileExistsError:
            return
        connection.send(("done", (0, 0, ["wrong"]), 1000))
        os.write(connection.fileno(), b"x" * 10)
        os._exit(3)
    if order == "raise":
        connection.send((FAILED, TextError(41, "is bad"), "Traceback: line 5\n"))
        time.sleep(60)
