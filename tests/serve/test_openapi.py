"""/openapi.json: it describes the routes, and its schemas accept what the server accepts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from nomicbert import __version__
from nomicbert.serve import openapi
from nomicbert.serve.app import PAGES
from tests.support.served import tiny
from tests.support.serving import InThread, in_thread


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InThread]:
    with in_thread(tiny(tmp_path_factory.mktemp("openapi"))) as found:
        yield found


@pytest.fixture(scope="module")
def document(server: InThread) -> dict[str, Any]:
    reply = server.call("/openapi.json")
    assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
    return reply.json


def test_the_document(document: dict[str, Any]) -> None:
    assert document["openapi"] == "3.1.0"
    assert document["info"] == {"title": "nomicbert", "version": __version__}
    assert document == openapi.describe()


def test_every_path_is_a_route(document: dict[str, Any]) -> None:
    known = {(page.path, page.method.lower()) for page in PAGES}
    described = {(path, method) for path, item in document["paths"].items() for method in item}
    assert described <= known
    bodies = {path for path, method in described if method == "post"}
    assert bodies >= {
        "/v1/embeddings", "/v1/embedding/text", "/embed", "/embed_all", "/similarity", "/vertex",
        "/tokenize", "/decode",
    }  # fmt: skip


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            if key == "$ref":
                yield item
            else:
                yield from references(item)
    elif isinstance(value, list):
        for item in value:
            yield from references(item)


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    found = set(references(document))
    assert len(found) >= 8
    for reference in found:
        place = document
        for part in reference.removeprefix("#/").split("/"):
            place = place[part]


def test_lists_are_stated_apart(document: dict[str, Any]) -> None:
    """A union of item types would allow mixtures, which are refused."""
    schemas = document["components"]["schemas"]
    for struct, field in (("EmbeddingsRequest", "input"), ("EmbedRequest", "inputs")):
        kinds = schemas[struct]["properties"][field]["anyOf"]
        assert [kind.get("items", {}).get("type") for kind in kinds] == [
            None, "string", "integer", "array"
        ]  # fmt: skip
        assert all(kind.get("minItems", 1) == 1 for kind in kinds)


def test_refusals_are_described(document: dict[str, Any]) -> None:
    for path, item in document["paths"].items():
        for operation in item.values():
            assert set(operation["responses"]) >= {"200", "401", "429", "503"}, path
