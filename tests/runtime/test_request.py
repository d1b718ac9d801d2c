"""runtime.request: contradictions between keywords of a call are refused."""

from __future__ import annotations

import pytest

from nomicbert.runtime.encode_keywords import TaskName
from nomicbert.runtime.request import Request, prompted


@pytest.mark.parametrize(("method", "other"), [("query", "document"), ("document", "query")])
def test_the_task_of_a_method(method: TaskName, other: TaskName) -> None:
    for keywords in ({}, {"task": None}, {"task": method}):
        assert prompted(keywords, None, method, ["a"])["task"] == method  # type: ignore[arg-type]
    wanted = f"encode_{method} is for task='{method}', not '{other}': leave task out"
    with pytest.raises(ValueError, match=wanted):
        prompted({"task": other}, None, method, ["a"])


def test_the_length() -> None:
    """It has two places."""
    stated = {"text": {"max_length": 9}}
    assert Request().max_length is None
    assert Request(max_length=7).max_length == 7
    assert Request(processing_kwargs=stated).max_length == 9
    assert Request(max_length=9, processing_kwargs=stated).max_length == 9
    with pytest.raises(ValueError, match="give max_length or processing_kwargs"):
        Request(max_length=7, processing_kwargs=stated)
