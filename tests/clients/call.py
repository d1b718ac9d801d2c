"""Make one client library's calls against a server and store what the library returned.

    python tests/clients/call.py CLIENT URL MODEL OUT.json

The interpreter is that of an environment with client libraries: nothing here imports nomicbert, and
this file needs the standard library only. `calls/with_CLIENT.py` holds the calls. The file written
maps the name of each call to {"vectors": base64 of little-endian float32, "shape", ...facts};
"beyond loopback" lists the connections and look-ups that the client tried and was refused.
"""

import array
import base64
import contextlib
import importlib
import ipaddress
import json
import os
import socket
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent

# Clients look for credentials, caches and proxies; none may be found.
ENVIRONMENT = {
    "NO_PROXY": "127.0.0.1,localhost",
    "ANONYMIZED_TELEMETRY": "False",  # chroma
    "DO_NOT_TRACK": "1",
    "HAYSTACK_TELEMETRY_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LANGSMITH_TRACING": "false",
}


class Record:
    """What each call returned, by its name."""

    def __init__(self) -> None:
        self.calls: dict[str, dict[str, object]] = {}

    def facts(self, name: str, **facts: object) -> None:
        """Store facts of a call, in addition to those it has."""
        self.calls.setdefault(name, {}).update(facts)

    def vectors(self, name: str, rows: Iterable[Sequence[float]], **facts: object) -> None:
        """Store vectors as float32; a value that float32 cannot hold exactly is a fact."""
        rows = [[float(value) for value in row] for row in rows]
        packed = array.array("f", [value for row in rows for value in row])
        assert packed.itemsize == 4
        if sys.byteorder == "big":
            packed.byteswap()
        widths = {len(row) for row in rows}
        assert len(widths) == 1, f"{name}: rows of widths {widths}"
        data = base64.b64encode(packed.tobytes()).decode()
        self.facts(name, vectors=data, shape=[len(rows), *widths], **facts)

    def ranking(self, name: str, found: Iterable[tuple[int, float]], **facts: object) -> None:
        """Store (index of the document, score) in the order of the answer; scores as `vectors`."""
        found = list(found)
        order = [index for index, _ in found]
        self.vectors(name, [[score for _, score in found]], order=order, **facts)

    @contextlib.contextmanager
    def error(self, name: str, kind: type[Exception]) -> Iterator[None]:
        """Store the error that the call raises; without one the record lacks the name."""
        try:
            yield
        except kind as error:
            response = getattr(error, "response", None)
            facts = {
                "status": getattr(error, "status_code", getattr(response, "status_code", None)),
                "code": getattr(error, "code", None),
                "param": getattr(error, "param", None),
            }
            self.facts(name, error=type(error).__name__, message=str(error), **facts)


def stay_on_loopback(attempts: list[str]) -> None:
    """Refuse connections and look-ups of Python code beyond this machine, and note them."""
    connect, getaddrinfo = socket.socket.connect, socket.getaddrinfo

    def check(host: object) -> None:
        name = host.decode() if isinstance(host, bytes) else host
        if name in (None, "", "localhost"):
            return
        with contextlib.suppress(ValueError):
            if ipaddress.ip_address(str(name)).is_loopback:
                return
        attempts.append(str(name))
        raise OSError(f"{name}: beyond loopback")

    def connect_here(sock: socket.socket, address: object) -> None:
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            check(address[0])
        return connect(sock, address)

    def look_up_here(host: object, *args: object, **keywords: object) -> object:
        check(host)
        return getaddrinfo(host, *args, **keywords)

    socket.socket.connect = connect_here
    socket.getaddrinfo = look_up_here


def main(client: str, url: str, model: str, out: str) -> None:
    texts = json.loads((HERE / "texts.json").read_text("utf-8"))
    record, attempts = Record(), []
    with tempfile.TemporaryDirectory() as home:
        keep = {name: os.environ[name] for name in ("PATH", "LANG", "SYSTEMROOT", "TMPDIR")
                if name in os.environ}  # fmt: skip
        os.environ.clear()
        os.environ.update(keep, HOME=home, USERPROFILE=home, **ENVIRONMENT)
        stay_on_loopback(attempts)
        calls = importlib.import_module(f"calls.with_{client}")
        calls.run(record, url, model, texts)
    done = {**record.calls, "beyond loopback": {"attempts": attempts}}
    Path(out).write_text(json.dumps(done, indent=1), "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
