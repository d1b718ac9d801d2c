"""A worker process: loads the models of a server for one device, and computes batches.

Where in the flow: `process` starts it with a socket and settings as JSON. It loads, warms up and
measures with `models.load`, answers with the facts, then reads a message of `wire` after the other.
It ends when the server does, or when it reads what is no message.
"""

import ctypes
import faulthandler
import functools
import os
import signal
import socket
import sys
import threading
import traceback

import msgspec
import torch
from torch import Tensor

from nomicbert.serve.engine import wire
from nomicbert.serve.engine.jobs import Finisher
from nomicbert.serve.engine.runs import ModelFacts
from nomicbert.serve.models import Loaded, load
from nomicbert.serve.names import Names
from nomicbert.serve.served import ServedEmbedder, ServedModel
from nomicbert.serve.settings import ServeSettings
from nomicbert.vectors.fingerprint import Fingerprint
from nomicbert.vectors.pooling import Finish

# Of sys/prctl.h: the signal that a process gets when the thread that started it ends.
PR_SET_PDEATHSIG = 1


def main(descriptor: int, settings_json: str) -> None:
    """Serve one connection until it is closed.

    Args:
        descriptor: of a connected socket.
        settings_json: a ServeSettings of one device.
    """
    end_with_parent()
    # what is in flight is still answered after a signal to the server, or to its group
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    faulthandler.enable()  # a crash shows where it was
    settings = msgspec.json.decode(settings_json, type=ServeSettings)
    if settings.worker_memory is not None:
        limit_memory(settings.worker_memory)
    with socket.socket(fileno=descriptor) as connection:
        try:
            loaded = load(settings, Names(settings))
        except Exception as error:  # whatever loading raises; the server raises it again
            wire.send(connection, failed(error))
            return
        wire.send(connection, *facts(loaded))
        try:
            while True:
                answer(connection, loaded)
        except EOFError:  # the server has closed the connection
            return


def end_with_parent() -> None:
    """End this process when the server ends, however that does."""

    def wait() -> None:
        while os.read(0, 1):  # nothing is written; the end of stdin is that of the server
            pass
        os._exit(0)

    threading.Thread(target=wait, name="end-with-parent", daemon=True).start()
    if sys.platform == "linux":  # also if native code holds Python's lock for ever
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def limit_memory(size: int) -> None:
    """Limit the address space of this process to `size` bytes: allocations beyond it fail.

    Raises: ValueError, OSError: the system refuses the limit.
    """
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (size, size))


def facts(loaded: Loaded) -> tuple[wire.Facts, memoryview]:
    """The message that the worker is ready."""
    vectors = [model.self_test for model in loaded.models]
    models = [
        ModelFacts(budget, rate, model.runs, fingerprint_of(model), len(vector))
        for model, vector, budget, rate in zip(
            loaded.models, vectors, loaded.budgets, loaded.rates, strict=True
        )
    ]
    return wire.Facts(models), wire.of_rows(vectors)[1]


def fingerprint_of(model: ServedModel) -> Fingerprint | None:
    """Of an embedding model."""
    return model.fingerprint if isinstance(model, ServedEmbedder) else None


def failed(error: Exception) -> wire.Failed:
    """The message of an error."""
    trace = "".join(traceback.format_exception(error))
    return wire.Failed(type(error).__name__, str(error), trace)


def answer(connection: socket.socket, loaded: Loaded) -> None:
    """Read a message, compute, and answer.

    Raises: EOFError: the connection was closed. WireError: no message came. OSError.
        torch.AcceleratorError: the device is lost.
    """
    header, body = wire.receive(connection, wire.REQUESTS)
    (replicas,) = loaded.replicas
    if isinstance(header, wire.Batch):
        batch = wire.to_batch(header, body, len(replicas))
        work = functools.partial(replicas[header.group.model].rows, batch)
    else:
        pooled = wire.to_pooled(header, body, len(replicas))
        model = replicas[header.model].embedding_model
        work = functools.partial(finished, model, pooled, header.finish)
    message: tuple[wire.Message, memoryview]
    try:
        message = wire.of_rows(work())
    except torch.AcceleratorError:
        raise  # all later batches would fail too: this process ends, and another one is started
    except Exception as error:  # any error of torch or of a kernel, reported to the request
        message = failed(error), wire.NOTHING
    wire.send(connection, *message)


@torch.inference_mode()
def finished(model: Finisher, pooled: Tensor, finish: Finish) -> list[Tensor]:
    """The rows of pooled ones, on the CPU."""
    return list(model.finish(pooled.to(model.device), finish).cpu())
