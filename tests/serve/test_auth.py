"""API keys: where they are needed, in which form, and what a refusal looks like."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nomicbert.serve.app import PAGES, Page
from tests.support.served import MODEL, tiny
from tests.support.serving import InThread, in_thread

KEYS = ("nk-first", "a key with spaces ~!")
OPEN = {"/health", "/health/live", "/health/ready", "/try", "/docs", "/pages/try.js"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InThread]:
    with in_thread(tiny(tmp_path_factory.mktemp("auth")), api_keys=KEYS) as found:
        yield found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.method} {page.path}")
def test_every_route_but_health_and_pages_needs_a_key(server: InThread, page: Page) -> None:
    path = page.path.replace("{name:path}", MODEL).replace("{name}", "try.js")
    body = b"{}" if page.method == "POST" else None
    headers = {"content-type": "application/json"} if body else {}
    reply = server.call(path, body, method=page.method, headers=headers)
    if page.method == "GET" and path in OPEN:
        assert reply.status == 200
        return
    assert reply.status == 401
    assert reply.headers["www-authenticate"] == "Bearer"
    assert reply.headers["content-type"] == "application/json"
    found = reply.json
    if page.dialect.name == "openai":
        assert found["error"]["type"] == "authentication_error"
        assert found["error"]["code"] == "invalid_api_key"
    elif page.dialect.name == "tei":
        assert found["error_type"] == "Validation"
    elif page.dialect.name == "nomic":
        assert found["detail"][0]["type"] == "unauthorized"
    elif page.dialect.name == "cohere":
        assert "authorization: Bearer KEY" in found["message"]
    elif page.dialect.name == "ollama":
        assert "authorization: Bearer KEY" in found["error"]
    else:
        assert found["error"]["type"] == "unauthorized"


@pytest.mark.parametrize(
    "header",
    [
        "Bearer nk-first", "bearer nk-first", "BEARER nk-first", "Bearer  nk-first ",
        "Bearer a key with spaces ~!",
    ],
)  # fmt: skip
def test_right_keys(server: InThread, header: str) -> None:
    reply = server.call("/embed", {"inputs": "a"}, headers={"authorization": header})
    assert reply.status == 200


@pytest.mark.parametrize(
    "header",
    [
        "", "Bearer", "Bearer ", "nk-first", "Basic nk-first", "Bearer nk-firs", "Bearer nk-first2",
        "Bearer nk-first, nk-first", "Bearer NK-FIRST", "Bearer ünk-first", "Bearer\tnk-first",
        "Token nk-first", "Bearer " + "x" * 10_000, "Bearer nk-first\xff",
    ],
)  # fmt: skip
def test_wrong_keys(server: InThread, header: str) -> None:
    headers = {"authorization": header.encode("latin-1")}
    for path, body in (("/embed", {"inputs": "a"}), ("/v1/models", None)):
        reply = server.call(path, body, headers=headers)
        assert reply.status == 401
        assert "nk-" not in reply.body.decode()


def test_a_key_is_not_read_elsewhere(server: InThread) -> None:
    for path in ("/v1/models?api_key=nk-first", "/v1/models?key=nk-first"):
        assert server.call(path).status == 401
    for name in ("x-api-key", "api-key", "cookie"):
        assert server.call("/v1/models", headers={name: "nk-first"}).status == 401


def test_the_key_is_checked_before_the_body(server: InThread) -> None:
    assert server.call("/embed", b"not json").status == 401
    headers = {"authorization": "Bearer nk-first", "content-type": "application/json"}
    assert server.call("/embed", b"not json", headers=headers).status == 400


def test_open_metrics(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tiny(tmp_path_factory.mktemp("open"))
    with in_thread(folder, api_keys=KEYS, open_metrics=True) as server:
        assert server.call("/metrics").status == 200
        assert server.call("/v1/models").status == 401


def test_without_keys_any_is_accepted(tmp_path_factory: pytest.TempPathFactory) -> None:
    with in_thread(tiny(tmp_path_factory.mktemp("none"))) as server:
        for header in ("Bearer anything", "Basic x", ""):
            reply = server.call("/embed", {"inputs": "a"}, headers={"authorization": header})
            assert reply.status == 200
