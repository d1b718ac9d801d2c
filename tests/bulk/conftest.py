"""Object stores for the tests of bulk jobs."""

from collections.abc import Iterator

import pytest

from tests.support.s3 import ENVIRONMENT, S3Server, running_s3


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    with running_s3() as server:
        yield server


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """An S3 server, and credentials for it in this process and its children."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    return s3_server
