"""Log lines: each is one JSON object, or one line for people."""

from __future__ import annotations

import io
import json
import logging
import os
import re
from collections.abc import Iterator

import pytest

from nomicbert.serve.logs import LOGGER, LogFormat, RequestLog, log_line, set_up


@pytest.fixture
def out() -> Iterator[io.StringIO]:
    names = (LOGGER, "uvicorn.error")
    logs = [logging.getLogger(name) for name in names]
    before = [(log.handlers, log.level, log.propagate) for log in logs]
    yield io.StringIO()
    for log, (log.handlers, level, log.propagate) in zip(logs, before, strict=True):
        log.setLevel(level)


def begin(out: io.StringIO, form: LogFormat) -> None:
    set_up(form, logging.StreamHandler(out))


def test_json(out: io.StringIO) -> None:
    begin(out, "json")
    log_line("request", id='a"\nb', ms=1.5, texts=0, model="", path=ValueError)
    log_line("odd", level=logging.WARNING, text="ü\u2028\x00")
    log_line("unseen", level=logging.DEBUG)
    try:
        raise RuntimeError("line one\nline two")
    except RuntimeError as error:
        logging.getLogger("nomicbert.serve.engine.engine").error(
            "a batch %s", "failed", exc_info=error
        )
    logging.getLogger("uvicorn.error").warning("from uvicorn")
    logging.getLogger("uvicorn.error").info("unseen")
    found = [json.loads(line) for line in out.getvalue().strip("\n").split("\n")]
    times = [line.pop("time") for line in found]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", time) for time in times)
    assert found[:2] == [
        {
            "level": "info", "event": "request", "id": 'a"\nb', "ms": 1.5, "texts": 0, "model": "",
            "path": "<class 'ValueError'>",
        },
        {"level": "warning", "event": "odd", "text": "ü\u2028\x00"},
    ]  # fmt: skip
    assert (found[2]["level"], found[2]["event"]) == ("error", "a batch failed")
    assert found[2]["traceback"].endswith("RuntimeError: line one\nline two")
    assert found[3] == {"level": "warning", "event": "from uvicorn"}
    assert len(found) == 4


def test_text(out: io.StringIO) -> None:
    begin(out, "text")
    log_line("request", id="a", ms=1.5, texts=0, model="", status=200)
    try:
        raise RuntimeError("planted")
    except RuntimeError as error:
        logging.getLogger(LOGGER).error("failed", exc_info=error)
    lines = out.getvalue().split("\n")
    assert lines[:3] == [
        "nomicbert: request id=a ms=1.5 status=200",
        "nomicbert: failed",
        "Traceback (most recent call last):",
    ]
    assert lines[-2:] == ["RuntimeError: planted", ""]


def test_records_do_not_go_to_other_handlers(out: io.StringIO) -> None:
    other = io.StringIO()
    handler = logging.StreamHandler(other)
    logging.getLogger().addHandler(handler)
    try:
        begin(out, "text")
        begin(out, "text")  # a second time adds no second handler
        log_line("once")
    finally:
        logging.getLogger().removeHandler(handler)
    assert out.getvalue() == "nomicbert: once\n"
    assert other.getvalue() == ""


@pytest.mark.parametrize(
    ("form", "line"),
    [
        ("json", {"level": "info", "event": "request", "id": "a", "status": 200, "model": ""}),
        ("text", "nomicbert: request id=a status=200\n"),
    ],
)
def test_the_line_of_a_request(form: LogFormat, line: object) -> None:
    reader, writer = os.pipe()
    try:
        RequestLog(form, writer)({"id": "a", "status": 200, "model": ""})
    finally:
        os.close(writer)
    with open(reader, encoding="utf-8") as pipe:
        found = pipe.read()
    if form == "json":
        assert found.endswith("}\n")
        content = json.loads(found)
        assert re.match(r"\d{4}-", content.pop("time"))
        assert content == line
    else:
        assert found == line
