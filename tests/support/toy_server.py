"""An embedding server of some lines, in a thread: what a test wants to see counted, it answers."""

import asyncio
import hashlib
import json
import threading
from collections import Counter
from collections.abc import Callable

import numpy as np

WIDTH = 8
Handler = Callable[["Toy", asyncio.StreamWriter, str, dict], "bytes | None"]


def vector(text: str, width: int = WIDTH) -> np.ndarray:
    """A float32 vector that only depends on the text."""
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
    return np.random.default_rng(seed).standard_normal(width).astype(np.float32)


def http(status: int, body: bytes, *fields: str) -> bytes:
    lines = [f"HTTP/1.1 {status} Word", f"Content-Length: {len(body)}", *fields]
    return "\r\n".join([*lines, "", ""]).encode() + body


def chunked(body: bytes, size: int = 7) -> bytes:
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    framed = b"".join(b"%x;note=1\r\n%b\r\n" % (len(part), part) for part in parts)
    return (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        + framed
        + b"0\r\nDone: yes\r\n\r\n"
    )


def embedded(path: str, asked: dict, change: int = 0) -> bytes:
    """The answer of a dialect; `change` is a bit mask for the last value of the last vector."""
    texts = asked.get("input") or asked.get("inputs") or asked.get("texts")
    texts = [texts] if isinstance(texts, str) else texts
    sizes = ("dimensions", "dimensionality", "output_dimension")
    width = next((asked[name] for name in sizes if asked.get(name)), WIDTH)
    rows = [vector(text, width) for text in texts]
    rows[-1][-1:].view(np.uint32)[:] ^= change
    tokens = sum(len(text.split()) + 2 for text in texts)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    found: object
    if path == "/v2/embed":
        found = {"embeddings": {"float": [row.tolist() for row in rows]}}
    elif path == "/api/embed":
        found = {"embeddings": [row.tolist() for row in rows]}
    elif path == "/rerank":
        found = [{"index": i, "score": float(row[-1])} for i, row in enumerate(rows)][::-1]
    elif path.endswith("/embed"):
        found = [row.tolist() for row in rows]
    elif path.endswith("/embedding/text"):
        found = {"embeddings": [row.tolist() for row in rows], "usage": usage, "model": "toy"}
    else:
        data = [{"index": i, "embedding": row.tolist()} for i, row in enumerate(rows)]
        if asked.get("encoding_format") == "base64":
            import base64

            for one, row in zip(data, rows, strict=True):
                one["embedding"] = base64.b64encode(row.astype("<f4").tobytes()).decode()
        found = {"object": "list", "data": data, "model": "toy", "usage": usage}
    return json.dumps(found).encode()


def plain(toy: "Toy", writer: asyncio.StreamWriter, path: str, asked: dict) -> bytes:
    return http(200, embedded(path, asked))


class Toy:
    """A server on loopback, as a context.

    Attributes:
        handler: makes the bytes of an answer; None: the handler has dealt with the connection.
        posts: number of POST requests. connections: accepted. statuses: of answers to POST.
        texts: of all POST requests.
    """

    def __init__(self, handler: Handler = plain, metrics: Callable[[], bytes] | None = None):
        self.handler, self.metrics = handler, metrics
        self.posts = self.connections = 0
        self.statuses: Counter[int] = Counter()
        self.texts: list[str] = []
        self.delay = 0.0
        self.lost = False
        self.asked = threading.Event()

    def __enter__(self) -> "Toy":
        started = threading.Event()
        self.loop = asyncio.new_event_loop()

        def work() -> None:
            asyncio.set_event_loop(self.loop)
            self.end = asyncio.Event()
            self.loop.run_until_complete(self.serve(started))
            self.loop.close()

        self.thread = threading.Thread(target=work)
        self.thread.start()
        assert started.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self.end.set)
        self.thread.join(30)
        assert not self.thread.is_alive()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def serve(self, started: threading.Event) -> None:
        self.tasks: set[asyncio.Task] = set()
        server = await asyncio.start_server(self.connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        started.set()
        await self.end.wait()
        server.close()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        self.connections += 1
        try:
            while await self.answer(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client has left, or the test has ended
        finally:
            self.tasks.discard(task)
            writer.close()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        method, path, _ = head.split(" ", 2)
        length = next(
            (
                int(v)
                for k, _, v in (x.partition(":") for x in head.split("\r\n"))
                if k == "Content-Length"
            ),
            0,
        )
        body = await reader.readexactly(length)
        if method == "GET":
            writer.write(self.get(path))
            await writer.drain()
            return True
        asked = json.loads(body)
        self.posts += 1
        found = asked.get("input") or asked.get("inputs") or asked.get("texts")
        self.texts += [found] if isinstance(found, str) else found
        self.asked.set()
        if self.delay:
            await asyncio.sleep(self.delay)
        made = self.handler(self, writer, path, asked)
        if made is None:
            return False
        self.statuses[int(made[9:12])] += 1
        writer.write(made)
        await writer.drain()
        return b"Connection: close" not in made

    def get(self, path: str) -> bytes:
        if path == "/v1/models":
            return http(200, json.dumps({"data": [{"id": "toy"}]}).encode())
        if path == "/metrics" and self.metrics:
            return http(200, self.metrics())
        return http(200 if path == "/health/ready" else 404, b"{}")
