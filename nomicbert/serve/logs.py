"""Log lines: one JSON object per line on stderr, never with a text or a key.

Where in the flow: everywhere. `--log-format text` shows the same fields for people.
"""

import json
import logging
import time
from typing import Literal

LogFormat = Literal["json", "text"]

LOGGER = "nomicbert.serve"
logger = logging.getLogger(LOGGER)


def log_line(event: str, *, level: int = logging.INFO, **fields: object) -> None:
    """Log an event with its fields."""
    if logger.isEnabledFor(level):
        logger.log(level, event, extra={"fields": fields})


class JsonLines(logging.Formatter):
    """A record as a JSON object; a traceback is a field."""

    def format(self, record: logging.LogRecord) -> str:
        """See the class."""
        line: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        line.update(getattr(record, "fields", {}))
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class TextLines(logging.Formatter):
    """A record as a line for people."""

    def format(self, record: logging.LogRecord) -> str:
        """See the class."""
        fields = getattr(record, "fields", {})
        parts = [f"{name}={value}" for name, value in fields.items() if value not in ("", 0)]
        line = " ".join(["nomicbert:", record.getMessage(), *parts])
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def set_up(form: LogFormat, stream_handler: logging.Handler) -> None:
    """Send the server's records, and uvicorn's warnings, to a handler in this form."""
    stream_handler.setFormatter(JsonLines() if form == "json" else TextLines())
    for name, level in ((LOGGER, logging.INFO), ("uvicorn.error", logging.WARNING)):
        log = logging.getLogger(name)
        log.handlers = [stream_handler]
        log.setLevel(level)
        log.propagate = False
