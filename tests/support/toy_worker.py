"""A worker with the message protocol of `dispatch` but without torch, so that it starts at once.

It answers a chunk with the texts in upper case, and executes texts that are commands.
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
    """Run a worker. It leaves a file with its process id in `folder`; the name "slow" works slowly.

    It begins when `together` workers have started.
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
    """Ids of the started processes."""
    return {int(path.stem) for path in Path(folder).glob("*.pid")}


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def obey(text: str, connection: Connection, folder: str) -> None:
    order, _, rest = text.partition(" ")
    if order == "alone":  # the caller has checked that the others died
        while any(map(alive, processes(folder) - {os.getpid()})):
            time.sleep(0.005)
    if order == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if order == "die-once":  # the file tells that a worker already has
        try:
            Path(rest).touch(exist_ok=False)
        except FileExistsError:
            return
        os.kill(os.getpid(), signal.SIGKILL)
    if order == "half":  # the process dies in the middle of an answer
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
