"""Log lines: one JSON object per line on stderr, never with a text or a key.

Where in the flow: everywhere. `--log-format text` shows the same fields for people. The line of a
request is written without the logging module, which would take a quarter of a short request's time.
"""

import contextlib
import datetime
import logging
import os
from collections.abc import Mapping
from typing import Literal

import orjson

LogFormat = Literal["json", "text"]

LOGGER = "nomicbert.serve"
logger = logging.getLogger(LOGGER)


def log_line(event: str, *, level: int = logging.INFO, **fields: object) -> None:
    """Log an event with its fields."""
    if logger.isEnabledFor(level):
        logger.log(level, event, extra={"fields": fields})


def as_json(level: str, event: str, fields: Mapping[str, object]) -> bytes:
    """A line as a JSON object."""
    now = datetime.datetime.now(datetime.timezone.utc)
    line = {"time": now, "level": level, "event": event, **fields}
    return orjson.dumps(line, default=str, option=orjson.OPT_UTC_Z)


def as_text(event: str, fields: Mapping[str, object]) -> str:
    """A line for people, without fields that say nothing."""
    parts = [f"{name}={value}" for name, value in fields.items() if value not in ("", 0)]
    return " ".join(["nomicbert:", event, *parts])


class JsonLines(logging.Formatter):
    """A record as a JSON object; a traceback is a field."""

    def format(self, record: logging.LogRecord) -> str:
        """See the class."""
        fields = dict(getattr(record, "fields", {}))
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return as_json(record.levelname.lower(), record.getMessage(), fields).decode()


class TextLines(logging.Formatter):
    """A record as a line for people, with its traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """See the class."""
        line = as_text(record.getMessage(), getattr(record, "fields", {}))
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class RequestLog:
    """Writes a line per request to a file descriptor."""

    def __init__(self, form: LogFormat, descriptor: int) -> None:
        """`descriptor`: of an open file, such as 2."""
        self._form = form
        self._descriptor = descriptor

    def __call__(self, fields: Mapping[str, object]) -> None:
        """Write the line of one request."""
        if self._form == "json":
            line = as_json("info", "request", fields)
        else:
            line = as_text("request", fields).encode("utf-8", "replace")
        with contextlib.suppress(OSError):  # nobody reads the log any more: answer all the same
            os.write(self._descriptor, line + b"\n")


def set_up(form: LogFormat, handler: logging.Handler) -> None:
    """Send the server's records, and uvicorn's warnings, to a handler in this form."""
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    for name, level in ((LOGGER, logging.INFO), ("uvicorn.error", logging.WARNING)):
        log = logging.getLogger(name)
        log.handlers = [handler]
        log.setLevel(level)
        log.propagate = False
