"""An S3 server on loopback: moto, in the environment of tests/clients/requirements.txt."""

from __future__ import annotations

import http.client
import json
import subprocess
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Ends when the test's process ends, whatever ends it.
SERVER = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""
# For the process that asks. No look for credentials of a cloud machine.
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_EC2_METADATA_DISABLED": "true",
}
# Signed by nobody: the server looks at it only in `checking_credentials`.
AUTHORIZATION = (
    "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, "
    "SignedHeaders=host, Signature=0"
)


class S3Server:
    """A running server.

    Attributes:
        options: the query of a URL that reaches it.
    """

    def __init__(self, port: int) -> None:
        self.address = f"127.0.0.1:{port}"
        self.options = f"?endpoint_override={self.address}&scheme=http&region=us-east-1"
        self._buckets = 0

    def bucket(self) -> str:
        """The name of a new bucket."""
        self._buckets += 1
        name = f"bucket-{self._buckets}"
        self.request("PUT", name)
        return name

    def url(self, path: str) -> str:
        return f"s3://{path}{self.options}"

    def put(self, path: str, content: bytes = b"") -> None:
        self.request("PUT", path, content)

    def get(self, path: str) -> bytes:
        return self.request("GET", path)

    def keys(self, bucket: str) -> list[str]:
        """All keys of a bucket with few objects, but for pyarrow's markers of folders."""
        listing = self.request("GET", bucket, query="?list-type=2&encoding-type=url").decode()
        found = [part.partition("</Key>")[0] for part in listing.split("<Key>")[1:]]
        return [urllib.parse.unquote(key) for key in found if not key.endswith("/")]

    def request(self, method: str, path: str, body: bytes = b"", query: str = "") -> bytes:
        link = http.client.HTTPConnection(self.address, timeout=60)
        try:
            address = "/" + urllib.parse.quote(path) + query
            link.request(method, address, body, {"Authorization": AUTHORIZATION})
            answer = link.getresponse()
            content = answer.read()
        finally:
            link.close()
        assert answer.status in (200, 204), (method, path, answer.status, content[:500])
        return content

    @contextmanager
    def checking_credentials(self) -> Iterator[None]:
        """Refuse credentials it does not know, which are all."""
        self.request("POST", "moto-api/reset-auth", b"0")
        try:
            yield
        finally:
            self.request("POST", "moto-api/reset-auth", json.dumps(10**9).encode())


@contextmanager
def running_s3() -> Iterator[S3Server]:
    """Start a server; ends it afterwards."""
    from tests.support.clients import interpreter  # takes seconds, and children need the rest only

    python = interpreter("NOMICBERT_TEST_CLIENTS", ".venv-clients/bin/python", "make test")
    process: subprocess.Popen[Any] = subprocess.Popen(
        [python, "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with process:
        try:
            line = process.stdout.readline()
            assert line.strip(), "moto's server did not start"
            yield S3Server(int(line))
        finally:
            process.kill()
