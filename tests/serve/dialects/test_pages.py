"""The pages for people: their headers, what a browser gets at / and what a probe gets."""

from __future__ import annotations

import contextlib
import http.client
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from nomicbert.serve import models
from nomicbert.serve.dialects import pages
from tests.support.served import tiny
from tests.support.serving import InThread, Reply, in_thread, wait_until

KEY = {"authorization": "Bearer nk-key"}
CHROMIUM = (
    "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;"
    "q=0.8,application/signed-exchange;v=b3;q=0.7"
)
FIREFOX = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
# address -> file
PLACES = {"/try": "try.html", "/docs": "docs.html"} | {
    f"/pages/{name}": name for name in pages.FILES
}
TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
each_place = pytest.mark.parametrize("place", PLACES)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InThread]:
    with in_thread(tiny(tmp_path_factory.mktemp("pages")), api_keys=("nk-key",)) as found:
        yield found


def content(name: str) -> bytes:
    return (pages.FOLDER / name).read_bytes()


def get(server: InThread, path: str, method: str = "GET", **headers: str) -> Reply:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return server.call(path, method=method, headers=given)


# --- the files ---


def test_every_file_has_an_address() -> None:
    assert {path.name for path in pages.FOLDER.iterdir()} == set(PLACES.values())
    assert len(PLACES) >= 8


@each_place
def test_a_file_is_open_and_strict(server: InThread, place: str) -> None:
    reply = get(server, place)
    assert (reply.status, reply.body) == (200, content(PLACES[place]))
    headers = reply.headers
    assert headers["content-type"] == TYPES[Path(PLACES[place]).suffix]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-cache"
    assert headers["referrer-policy"] == "no-referrer"
    policy = dict(
        part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";")
    )
    own = {"script-src", "style-src", "img-src", "connect-src"}
    assert {name for name, value in policy.items() if value == "'self'"} == own
    assert policy.pop("require-trusted-types-for") == "'script'"
    assert {value for name, value in policy.items() if name not in own} == {"'none'"}
    assert {"default-src", "base-uri", "form-action", "frame-ancestors"} <= set(policy)


@each_place
def test_head(server: InThread, place: str) -> None:
    whole, head = get(server, place), get(server, place, "HEAD")
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-length"] == str(len(whole.body))
    for name in ("content-type", "etag", "content-security-policy"):
        assert head.headers[name] == whole.headers[name]


@each_place
def test_what_the_client_has_is_not_sent_again(server: InThread, place: str) -> None:
    tag = get(server, place).headers["etag"]
    assert re.fullmatch(r'"[0-9a-f]{32}"', tag)
    for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        reply = get(server, place, if_none_match=known)
        assert (known, reply.status, reply.body) == (known, 304, b"")
        assert reply.headers["etag"] == tag
        assert reply.headers["cache-control"] == "no-cache"
        assert "content-length" not in reply.headers
    for known in ('"other"', tag.strip('"'), f"{tag}x", ""):
        assert get(server, place, if_none_match=known).status == 200


def test_tags_differ() -> None:
    assert len({pages._read(name)[1] for name in PLACES.values()}) == len(PLACES)


def test_a_connection_goes_on_after_304(server: InThread) -> None:
    tag = get(server, "/try").headers["etag"]
    address = urlsplit(server.url)
    with contextlib.closing(http.client.HTTPConnection(address.hostname, address.port)) as one:
        for headers, status, size in (
            ({"If-None-Match": tag}, 304, 0),
            ({}, 200, len(content("try.html"))),
        ):
            one.request("GET", "/try", headers=headers)
            reply = one.getresponse()
            assert (reply.status, len(reply.read())) == (status, size)
            sock = one.sock
        assert sock is not None


@pytest.mark.parametrize(
    "name",
    [
        "unknown.js",
        "try.html",
        "../app.py",
        "..%2Fapp.py",
        "%2e%2e/app.py",
        "try.js/",
        "",
        "try.js%00",
    ],
)
def test_no_other_file(server: InThread, name: str) -> None:
    reply = get(server, f"/pages/{name}")
    assert reply.status == 404
    assert reply.headers["content-type"] == "application/json"
    assert reply.json["error"]["type"] == "not_found"


def test_nothing_comes_from_elsewhere() -> None:
    """No address but the name of SVG, which is none; no way to make markup of a text."""
    addresses, markup = (
        re.compile(r"""(?:\w+:)?//[\w.]+[^\s"'`)]*"""),
        re.compile(
            r"innerHTML|outerHTML|insertAdjacent|document\.write|DOMParser|\beval\b|new Function"
            r"|setAttribute\('(?:style|on)|\son\w+=|\sstyle=|<script>|<style|javascript:|@import|url\("
        ),
    )
    seen = 0
    for name in PLACES.values():
        text = content(name).decode()
        comments = r"^\s*//.*$|\s// .*$" if name.endswith(".js") else r"(?!)"
        code = re.sub(comments, "", text, flags=re.M)
        for found in addresses.findall(code):
            assert found == "http://www.w3.org/2000/svg", (name, found)
            seen += 1
        assert not markup.search(code), name
    assert seen == 2  # icon.svg and pictures.js: the search finds what is there


def test_lines_are_short() -> None:
    for name in PLACES.values():
        if not name.endswith(".svg"):
            lines = content(name).decode().splitlines()
            assert len(lines) > 10
            assert [line for line in lines if len(line) > 100] == [], name


def test_what_a_page_loads_is_served() -> None:
    """Relative addresses only: the pages work below a prefix of a proxy."""
    for name in PLACES.values():
        text = content(name).decode()
        if name.endswith(".html"):
            found = re.findall(r'(?:href|src)="([^"]*)"', text)
            assert set(found) <= {path.removeprefix("/") for path in PLACES} | {"openapi.json"}
            assert len(found) >= 5
        for imported in re.findall(r"from '(.*?)'", text):
            assert imported.removeprefix("./") in pages.FILES


# --- Accept ---


@pytest.mark.parametrize(
    "accept",
    [
        FIREFOX, CHROMIUM, "text/html", "TEXT/HTML", "text/html, */*", "text/html;q=0.2, */*;q=0.1",
        "text/html;level=1", "application/json;q=0.9, text/html", " text/html ; q=1.000 , a/b;q=0",
    ],
)  # fmt: skip
def test_a_browser_gets_the_page(server: InThread, accept: str) -> None:
    reply = get(server, "/", accept=accept)
    assert (reply.status, reply.body) == (200, content("try.html"))
    assert reply.headers["content-type"] == TYPES[".html"]
    assert reply.headers["vary"] == "accept"
    assert "default-src 'none'" in reply.headers["content-security-policy"]
    tag = reply.headers["etag"]
    again = get(server, "/", accept=accept, if_none_match=tag)
    assert (again.status, again.headers["vary"]) == (304, "accept")
    assert get(server, "/", "HEAD", accept=accept).headers["etag"] == tag


@pytest.mark.parametrize(
    "accept",
    [
        None, "", "*/*", "text/*", "application/json", "text/html;q=0.1, application/json",
        "application/json, text/html", "application/json, text/plain, */*", "*/*, text/html",
        "text/html;q=0", "text/html;q=nan", "text/html;q=2", "text/html;q=-1", "text/htmlx",
        "xtext/html", "text/html;q=0.5, text/plain;q=0.6", ",", ";q=1",
        "text/plain, text/html;q=0.9",
    ],
)  # fmt: skip
def test_others_get_the_probe(server: InThread, accept: str | None) -> None:
    headers = {} if accept is None else {"accept": accept}
    reply = server.call("/", headers={**headers, **KEY})
    assert (reply.status, reply.body) == (200, b"")
    assert reply.headers["content-type"] == "application/json"
    assert not reply.headers.keys() & {"content-security-policy", "etag", "vary", "cache-control"}
    # as before, it needs the key, and the page does not
    refused = server.call("/", headers=headers)
    assert (refused.status, refused.headers["www-authenticate"]) == (401, "Bearer")


# What these send with GET /.
PROBES = {
    "kubelet": {"User-Agent": "kube-probe/1.31", "Accept": "*/*", "Connection": "close"},
    "curl": {"User-Agent": "curl/8.5.0", "Accept": "*/*"},
    "load balancer": {"User-Agent": "ELB-HealthChecker/2.0", "Accept-Encoding": "gzip, compressed"},
    "requests": {"User-Agent": "python-requests/2.32", "Accept": "*/*"},
    "axios": {"User-Agent": "axios/1.7", "Accept": "application/json, text/plain, */*"},
    "none": {},
}


def test_probes_while_loading_and_when_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Empty 503, then empty 200; / has the same status for a browser, /try is there at once."""
    go, own = threading.Event(), models.load

    def slow(*arguments: Any) -> Any:
        assert go.wait(120)
        return own(*arguments)

    monkeypatch.setattr(models, "load", slow)
    with in_thread(tiny(tmp_path), wait=False) as server:
        wait_until(lambda: server.server.started)
        tag = get(server, "/try").headers["etag"]
        for status in (503, 200):
            for name, headers in PROBES.items():
                for path in ("/", "/health", "/ping"):
                    reply = server.call(path, headers=headers)
                    assert (name, path, reply.status, reply.body) == (name, path, status, b"")
            page = get(server, "/", accept=FIREFOX)
            assert (page.status, page.body) == (status, content("try.html"))
            known = get(server, "/", accept=FIREFOX, if_none_match=tag).status
            assert known == {503: 503, 200: 304}[status]
            for path in PLACES:
                assert get(server, path).status == 200
            go.set()
            wait_until(lambda: server.call("/health/ready").status == 200)


def test_tei_still_posts_to_the_root(server: InThread) -> None:
    headers = {**KEY, "accept": FIREFOX}
    reply = server.call("/", {"inputs": "a"}, headers=headers)
    assert (reply.status, reply.vectors.shape) == (200, (1, 64))


def test_pages_with_cors(tmp_path: Path) -> None:
    """All answers pass the router there."""
    with in_thread(tiny(tmp_path), cors_origins=("http://localhost:1",), wait=False) as server:
        wait_until(lambda: server.server.started)
        reply = get(server, "/try", origin="http://localhost:1")
        assert reply.headers["access-control-allow-origin"] == "http://localhost:1"
        assert reply.headers["cross-origin-resource-policy"] == "same-origin"
        assert (reply.status, reply.body) == (200, content("try.html"))
