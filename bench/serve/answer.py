"""An incremental parser of HTTP/1.1 answers, no more than a load client needs.

Bodies end by Content-Length, chunks, or the end of the connection. Source: RFC 9112, sections 4-7.
"""

LONGEST_HEAD = 65536


class Malformed(ValueError):
    """The bytes are not an HTTP/1.1 answer."""


class Answer:
    """One answer, while it arrives.

    Attributes:
        status: 0 until the head is complete.
        head: status line and header fields, in lower case.
        body: complete once `done`.
        keeps: whether the connection can be used again.
    """

    __slots__ = (
        *("_at", "_chunked", "_left", "_parts", "_pending"),
        *("body", "done", "head", "keeps", "status"),
    )

    def __init__(self) -> None:
        self.status, self.head, self.body = 0, b"", b""
        self.done = self._chunked = False
        self.keeps = True
        self._pending = b""
        self._parts: list[bytes] = []
        self._left: int | None = None  # bytes of the body or of the chunk; None: until the end
        self._at = "head"

    def feed(self, data: bytes) -> bool:
        """Take bytes; return whether the answer is complete.

        Raises: Malformed.
        """
        if self._at == "head":
            data = self._pending + data
            self._pending = b""
            end = data.find(b"\r\n\r\n")
            while end >= 0 and data[8:10] == b" 1":  # 100 Continue and the like
                data = data[end + 4 :]
                end = data.find(b"\r\n\r\n")
            if end < 0:
                if len(data) > LONGEST_HEAD:
                    raise Malformed(f"a head of more than {LONGEST_HEAD} bytes")
                self._pending = data
                return False
            self._read_head(data[:end].lower())
            data = data[end + 4 :]
        if self._chunked:
            self._feed_chunks(data)
        elif self._left is None:
            self._parts.append(data)
        else:
            self._parts.append(data[: self._left])
            self.keeps &= len(data) <= self._left
            self._left -= len(self._parts[-1])
            if not self._left:
                self._finish()
        return self.done

    def end(self) -> bool:
        """The connection has ended; return whether the answer is complete."""
        self.keeps = False
        if self._at == "body" and not self._chunked and self._left is None:
            self._finish()
        return self.done

    def field(self, name: bytes) -> bytes | None:
        """The value of a header field in lower case, or None."""
        start = self.head.find(b"\r\n" + name + b":")
        if start < 0:
            return None
        start += len(name) + 3
        end = self.head.find(b"\r\n", start)
        return self.head[start : end if end >= 0 else None].strip()

    def _read_head(self, head: bytes) -> None:
        if not head.startswith(b"http/1.") or not head[9:12].isdigit():
            raise Malformed(f"an answer that begins with {head[:40]!r}")
        self.head, self.status = head, int(head[9:12])
        connection = self.field(b"connection") or b""
        self.keeps = b"close" not in connection
        if head.startswith(b"http/1.0"):
            self.keeps = b"keep-alive" in connection
        length = self.field(b"content-length")
        self._at = "body"
        if b"chunked" in (self.field(b"transfer-encoding") or b""):
            self._chunked, self._at = True, "size"
        elif self.status in (204, 304):
            self._left = 0
        elif length is not None:
            if not length.isdigit():
                raise Malformed(f"Content-Length: {length!r}")
            self._left = int(length)

    def _feed_chunks(self, data: bytes) -> None:
        data, self._pending = self._pending + data, b""
        at = 0
        while not self.done:
            if self._at == "data":
                assert self._left is not None
                part = data[at : at + self._left]
                self._parts.append(part)
                at += len(part)
                self._left -= len(part)
                if self._left:
                    return
                self._at = "after"
            end = data.find(b"\r\n", at)
            if end < 0:
                self._pending = data[at:]
                if len(self._pending) > LONGEST_HEAD:
                    raise Malformed("a chunk without a size")
                return
            line, at = data[at:end], end + 2
            if self._at == "after":
                if line:
                    raise Malformed("a chunk that is longer than its size")
                self._at = "size"
            elif self._at == "size":
                try:
                    self._left = int(line.partition(b";")[0], 16)
                except ValueError:
                    raise Malformed(f"a chunk of size {line[:40]!r}") from None
                self._at = "data" if self._left else "trailers"
            elif not line:
                self.keeps &= at == len(data)
                self._finish()

    def _finish(self) -> None:
        self.body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self.done = True
