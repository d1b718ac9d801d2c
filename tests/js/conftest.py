"""Exports that the tests of Transformers.js share; `make test-js` runs them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.exports import Exports

VARIABLE = "NOMICBERT_TEST_JS"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get(VARIABLE) == "1":
        return
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=f"needs {VARIABLE}=1: make test-js"))


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    return Exports(tmp_path_factory.mktemp("exports"))
