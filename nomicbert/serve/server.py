"""Run the server: socket, event loop, signals, and an orderly end.

Where in the flow: `nomicbert serve` calls `run`. The socket is open while the models are loaded,
and requests get 503 until then. After SIGTERM /health/ready answers 503, requests are still
accepted for `drain_seconds`, because load balancers learn of it late; those in flight then have
`grace_seconds`.
"""

import asyncio
import contextlib
import logging
import math
import os
import signal
import socket
import stat
import sys
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn

from nomicbert.serve.app import make_app
from nomicbert.serve.http.connection import limited
from nomicbert.serve.logs import LogFormat, RequestLog, log_line, set_up
from nomicbert.serve.names import Names
from nomicbert.serve.service import Service
from nomicbert.serve.settings import ServeSettings

# Seconds that a thread may hold Python's lock while the event loop waits.
SWITCH_SECONDS = 0.0005
# Open files to ask for where the system names no limit.
FILES = (1 << 16, 1 << 14, 10240)


class Server(uvicorn.Server):
    """uvicorn's server with a drain before its shutdown.

    Attributes:
        failure: why loading failed, or None.
    """

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        """See `run`."""
        super().__init__(config)
        self.service = service
        self.failure: Exception | None = None
        self._signals = 0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and load the models meanwhile."""
        await super().startup(sockets)
        self._loading = asyncio.create_task(self._load())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, let requests in flight end, and stop the engine."""
        await super().shutdown(sockets)
        self.service.stopping = True
        self._loading.cancel()
        self.service.stop(at_once=self.force_exit)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains, a second one ends at once."""
        self._signals += 1
        if self._signals > 1:
            self.should_exit = self.force_exit = True
            return
        self.service.draining = True
        wait = self.service.settings.drain_seconds if sig == signal.SIGTERM else 0.0
        log_line("draining", seconds=wait, in_flight=self.service.in_flight)
        if not wait or self.service.loaded is None:
            self.should_exit = True
            return
        loop = self._loading.get_loop()
        loop.call_soon_threadsafe(loop.call_later, wait, self._exit)

    def _exit(self) -> None:
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals; unlike uvicorn's own, do not raise them again after an orderly end."""
        try:
            before = {
                number: signal.signal(number, self.handle_exit)
                for number in (signal.SIGINT, signal.SIGTERM)
            }
        except ValueError:  # not in the main thread
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def _load(self) -> None:
        try:
            await self.service.start()
        except asyncio.CancelledError:
            raise
        except Exception as error:  # raised again by `run`, which ends the command with it
            self.failure = error
            self.should_exit = True
            return
        for model in self.service.models:
            log_line("ready", model=model.name, loaded=repr(model.facade))


def make_server(settings: ServeSettings) -> Server:
    """A server that is not running yet.

    Raises: ValueError: names of models that contradict each other.
    """
    app, service = make_app(settings, Names(settings))
    config = uvicorn.Config(
        app,
        http=limited(settings.head_seconds, settings.body_seconds),
        ws="none",
        lifespan="off",
        loop="auto",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=settings.keep_alive_seconds,
        timeout_graceful_shutdown=math.ceil(settings.grace_seconds),
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
    )
    return Server(config, service)


def run(settings: ServeSettings, log_format: LogFormat, say: Callable[[str], None]) -> None:
    """Serve until a signal comes.

    Args:
        settings: of the server.
        log_format: of the lines on stderr.
        say: prints a line for the user.

    Raises: NomicBertError, ValueError: a model or setting that is not valid. OSError: the address
        is taken, or may not be used.
    """
    set_up(log_format, logging.StreamHandler(sys.stderr))
    server = make_server(settings)
    if settings.access_log:
        server.service.request_log = RequestLog(log_format, sys.stderr.fileno())
    with contextlib.closing(listen(settings)) as listener:
        say(f"serving on {address(settings, listener)}")
        if not settings.is_local and not settings.api_keys:
            say(
                f"warning: {settings.host} can be reached from other machines, and no --api-key is "
                "set: anyone there may use this server"
            )
        raise_file_limit()
        sys.setswitchinterval(SWITCH_SECONDS)
        server.run(sockets=[listener])
    if server.failure is not None:
        raise server.failure


def listen(settings: ServeSettings) -> socket.socket:
    """The listening socket.

    Raises: OSError: names the address.
    """
    if settings.uds is not None:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with contextlib.suppress(FileNotFoundError):
            remove_stale(settings.uds)
        place: object = settings.uds
    else:
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        # asyncio turns Nagle's algorithm off for sockets of this protocol only; with it, the body
        # of an answer waits 40 ms for the client to confirm the head
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        if os.name == "posix":  # on Windows it would let two servers have one port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        place = (settings.host, settings.port)
    try:
        listener.bind(place)  # type: ignore[arg-type]
        listener.listen(2048)
    except OSError as error:
        listener.close()
        name = settings.uds or f"{settings.host}:{settings.port}"
        raise OSError(error.errno, f"cannot listen on {name}: {error.strerror}") from error
    listener.set_inheritable(False)
    return listener


def remove_stale(path: str) -> None:
    """Remove the socket file of a server that has ended, but no other file.

    Raises: FileNotFoundError.
    """
    if not stat.S_ISSOCK(os.stat(path).st_mode):
        return  # to listen there is an error
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with contextlib.closing(probe):
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)


def address(settings: ServeSettings, listener: socket.socket) -> str:
    """The address for people."""
    if settings.uds is not None:
        return f"unix socket {settings.uds}"
    host, port = listener.getsockname()[:2]
    scheme = "https" if settings.tls_cert else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def raise_file_limit() -> None:
    """Allow as many open connections as the system lets this process have."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in FILES if hard == resource.RLIM_INFINITY else (hard,):
        if soft >= wanted:
            return
        with contextlib.suppress(ValueError, OSError):  # macOS has a limit that it does not tell
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            return
