"""One worker process, seen from the server: started, asked, killed.

Where in the flow: `keeper` starts one after the other; compute threads ask it for the rows of a
batch, one at a time. It is a new Python, not a fork: a fork of a process with threads may inherit a
lock that nobody releases.
"""

import contextlib
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence

import msgspec
from torch import Tensor

from nomicbert import errors
from nomicbert.errors import NomicBertError, TextError, WorkerError
from nomicbert.serve.engine import wire
from nomicbert.serve.engine.compute import TookTooLong
from nomicbert.serve.engine.jobs import Piece
from nomicbert.serve.settings import ServeSettings
from nomicbert.vectors.pooling import Finish

# Run by the new Python, with the path of this one: its own would begin with the current folder.
CODE = (
    "import sys; sys.path[:] = sys.argv[3:]; from nomicbert.serve.engine.worker import main; "
    "main(int(sys.argv[1]), sys.argv[2])"
)


class WorkerDied(WorkerError):
    """The worker has ended, or answered what is no answer, before the rows came."""


class WorkerStuck(WorkerDied, TookTooLong):
    """The rows, or the facts, did not come in time."""


class RemoteError(RuntimeError):
    """The computation has raised an error in the worker; the message has its traceback."""


class WorkerProcess:
    """A running worker.

    Attributes:
        pid: of the process.
        turn: held by the thread that talks to it.
        answered: number of answers so far.
    """

    def __init__(self, settings: ServeSettings) -> None:
        """Start a process, which begins to load.

        Args:
            settings: of the worker, see `isolated`. An answer that comes after `stuck_seconds` is
                too late.

        Raises: OSError: the system refuses it.
        """
        self.answered = 0
        self.turn = threading.Lock()
        self._seconds = settings.stuck_seconds
        self._connection, theirs = socket.socketpair()
        with theirs, contextlib.ExitStack() as undo:
            undo.callback(self._connection.close)
            text = msgspec.json.encode(settings).decode()
            number = theirs.fileno()
            self._process = subprocess.Popen(
                [sys.executable, "-c", CODE, str(number), text, *sys.path],
                pass_fds=(number,),
                stdin=subprocess.PIPE,  # its end tells the worker that this process has ended
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C on the terminal is for the server alone
            )
            undo.pop_all()
        self.pid = self._process.pid

    def facts(self, seconds: float | None = None) -> tuple[wire.Facts, list[Tensor]]:
        """Wait until the worker is ready: its facts, and the vector of each model's self-test.

        Args:
            seconds: that this may take, or None for any time.

        Raises: NomicBertError, ValueError: what loading has raised there. WorkerStuck, WorkerDied.
        """
        try:
            self._connection.settimeout(seconds)
            header, body = wire.receive(self._connection, wire.STARTS)
            if isinstance(header, wire.Facts):
                return header, wire.to_vectors(header, body)
        except TimeoutError as error:
            raise WorkerStuck(f"the worker was not ready within {seconds:g} s") from error
        except (OSError, EOFError, wire.WireError) as error:
            raise WorkerDied(f"the worker failed while it was loading: {error}") from error
        raise _error_of(header)

    def rows(self, batch: Sequence[Piece]) -> list[Tensor]:
        """The row of each piece, as `Replica.rows`.

        Raises: RemoteError: the computation failed. WorkerDied: so did the worker.
        """
        hidden = batch[0].job.group.hidden
        row: wire.Shape = (None,)
        shapes = [(len(piece.ids), None) if hidden else row for piece in batch]
        return self._ask(*wire.of_batch(batch), shapes)

    def finish(self, model: int, pooled: Tensor, finish: Finish) -> list[Tensor]:
        """Apply a model's steps after pooling to rows: (n, columns) fp32 on the CPU.

        Raises: as `rows`.
        """
        return self._ask(*wire.of_pooled(model, pooled, finish), [(None,)] * len(pooled))

    def kill(self) -> None:
        """End the process; a thread that waits for its answer gets a WorkerDied."""
        self._process.kill()
        with contextlib.suppress(OSError):  # the other end has closed it
            self._connection.shutdown(socket.SHUT_RDWR)

    def wait(self) -> str:
        """Wait until the process has ended; return how, in words."""
        status = self._process.wait()
        # children of the worker may have the other end of the connection open
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        with self.turn:
            self._connection.close()
        assert self._process.stdin is not None, "it is a pipe"
        self._process.stdin.close()
        if status >= 0:
            return f"exit status {status}"
        try:
            return f"killed by {signal.Signals(-status).name}"
        except ValueError:  # a real-time signal has no name
            return f"killed by signal {-status}"

    def _ask(
        self,
        header: wire.Message,
        body: memoryview,
        shapes: Sequence[wire.Shape],
    ) -> list[Tensor]:
        connection = self._connection
        rows: list[Tensor] = []
        try:
            connection.settimeout(self._seconds)
            wire.send(connection, header, body)
            answer, content = wire.receive(connection, wire.ANSWERS)
            if isinstance(answer, wire.Rows):
                rows = wire.to_rows(answer, content, shapes)
        except BaseException as error:
            # whatever it was, also no memory: the next question would get an answer that is unread
            self.kill()
            if isinstance(error, TimeoutError):
                raise WorkerStuck(f"no answer within {self._seconds:g} s") from error
            if isinstance(error, Exception):
                what = str(error) or type(error).__name__
                raise WorkerDied(f"the worker failed while it was computing: {what}") from error
            raise
        self.answered += 1
        if isinstance(answer, wire.Failed):
            raise RemoteError(f"{answer.kind}: {answer.message}\n{answer.trace}")
        return rows


def _error_of(failed: wire.Failed) -> Exception:
    """The error of our tree, or ValueError, that loading has raised in the worker."""
    kind = getattr(errors, failed.kind, None)
    if isinstance(kind, type) and issubclass(kind, NomicBertError) and kind is not TextError:
        return kind(failed.message)
    if failed.kind in ("ValueError", "TypeError"):
        return ValueError(failed.message)
    return WorkerError(f"{failed.kind}: {failed.message}\n{failed.trace}")
