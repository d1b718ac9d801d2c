"""The web page of examples/transformers_js in headless Chromium."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

from nomicbert import Embedder
from tests.support.exports import Exports, minilm
from tests.support.javascript import EXAMPLE, TESTS, browser, encode, node, run_node

QUESTION = "How do plants live on sunlight?"
PASSAGES = json.loads((EXAMPLE / "web/passages.json").read_text("utf-8"))
# Scores are shown with 3 digits.
SHOWN = 5.1e-4
Browse = Callable[..., dict[str, Any]]


@contextmanager
def served(site: Path) -> Iterator[str]:
    """Run serve.mjs on a free port."""
    program = shutil.which("node") or "node"
    command = [program, str(EXAMPLE / "serve.mjs"), str(site), "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().strip()
        finally:
            server.terminate()


@contextmanager
def served_by_python(site: Path) -> Iterator[str]:
    """As `python -m http.server` does: no headers of isolation."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


def browse(url: str, scenario: str, *more: str) -> dict[str, Any]:
    """Run a scenario of browse.mjs."""
    return node(TESTS / "browse.mjs", browser(), url, scenario, *more)


def check_quiet(found: dict[str, Any], url: str) -> None:
    """No request went elsewhere, none failed, and the page reported nothing."""
    seen = found["seen"]
    requests = [urlsplit(request) for request in seen["requests"]]
    hosts = {part.netloc for part in requests if part.scheme not in ("data", "blob")}
    assert hosts == {urlsplit(url).netloc}
    assert not seen["failed"]
    assert set(seen["statuses"]) <= {"200", "304"}
    assert not seen["console"]
    assert not seen["errors"]
    paths = {part.path for part in requests}
    assert {"/vendor/transformers.min.js", "/vendor/ort-wasm-simd-threaded.wasm"} <= paths


def make_site(folder: Path, *arguments: str) -> Path:
    done = run_node(EXAMPLE / "site.mjs", *arguments, "--out", str(folder))
    assert done.returncode == 0, done.stderr
    return folder


def ranking(model: Path, question: str, texts: list[str], prompts: tuple[str, str]) -> np.ndarray:
    """Cosines of a question with texts, by this package."""
    embedder = Embedder(model)
    rows = encode(embedder, [prompts[1] + question, *(prompts[0] + text for text in texts)])
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows[1:] @ rows[0])


def check_ranking(found: dict[str, Any], model: Path, prompts: tuple[str, str] = ("", "")) -> None:
    """The ten best titles and their scores are those of this package."""
    texts = [f"{passage['title']}: {passage['text']}" for passage in PASSAGES]
    scores = ranking(model, QUESTION, texts, prompts)
    best = np.argsort(-scores)[:10]
    assert found["titles"] == [PASSAGES[i]["title"] for i in best]
    np.testing.assert_allclose(found["scores"], scores[best], rtol=0, atol=SHOWN)


@pytest.fixture(scope="module")
def minilm_site(exports: Exports, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_site(tmp_path_factory.mktemp("site"), str(exports.exported("minilm")))


def test_search_with_a_quantized_model(minilm_site: Path) -> None:
    with served(minilm_site) as url:
        found = browse(url, "search")
    check_quiet(found, url)
    assert found["found"]["titles"][0] == "Photosynthesis"
    assert found["found"] == found["again"] | {"summary": found["found"]["summary"]}
    assert found["found"]["summary"].startswith("best: Photosynthesis · ")
    assert len(found["found"]["titles"]) == 10
    assert found["own"]["titles"] == ["Sharks are fish.", "The kettle is on the stove."]
    assert found["empty"] == "There is no line to embed: write one text per line."
    known = found["known"]
    assert known["isolated"]
    assert int(known["threads"]) == min(os.cpu_count() or 1, 4)
    assert (known["dimension"], known["longest text"]) == ("384", "256 tokens")
    assert (known["document"], known["query"]) == ("", "")


def test_any_static_server_will_do(minilm_site: Path) -> None:
    with served_by_python(minilm_site) as url:
        found = browse(url, "search")
    check_quiet(found, url)
    assert not found["known"]["isolated"]
    assert found["known"]["threads"] == "1"
    assert found["found"]["titles"][0] == "Photosynthesis"


def test_scores_are_those_of_this_package(exports: Exports, tmp_path: Path) -> None:
    """In fp32: two models of which one needs prompts, and the second one chosen while busy."""
    models = [str(exports.exported(name)) for name in ("nomic", "minilm")]
    site = make_site(tmp_path / "site", *models, "--dtype", "fp32")
    with served(site) as url:
        found = browse(url, "models")
    check_quiet(found, url)
    assert found["first"] == {"document": "search_document: ", "query": "search_query: "}
    assert found["other"] == {"document": "", "query": ""}
    nomic = exports.source("nomic")
    check_ranking(found["found"], nomic, ("search_document: ", "search_query: "))
    check_ranking(found["without"], nomic)
    check_ranking(found["second"], minilm())
    check_ranking(found["third"], nomic, ("search_document: ", "search_query: "))


def test_pictures(minilm_site: Path) -> None:
    """The page fits a phone; NOMICBERT_SCREENSHOTS names a folder for pictures of it."""
    folder = os.environ.get("NOMICBERT_SCREENSHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
    with served(minilm_site) as url:
        found = browse(url, "pictures", *filter(None, [folder and os.path.abspath(folder)]))
    check_quiet(found, url)
    assert found["widths"] == {"light": 1100, "dark": 390}


def test_every_control_has_a_name(minilm_site: Path) -> None:
    with served(minilm_site) as url:
        found = browse(url, "names")
    assert found["unnamed"] == []
    assert found["controls"] >= 12
    assert found["live"] == 2


BROKEN = {
    "no model": ("models", "models/index.json is missing (HTTP 404)"),
    "no weights": ("models/{}/onnx", "The model could not be loaded: "),
    "no library": ("vendor", "The worker did not start: "),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_missing_is_said(kind: str, minilm_site: Path, tmp_path: Path) -> None:
    removed, message = BROKEN[kind]
    site = shutil.copytree(minilm_site, tmp_path / "site")
    (model,) = json.loads((site / "models/index.json").read_text("utf-8"))
    shutil.rmtree(site / removed.format(model["name"]))
    with served(site) as url:
        found = browse(url, "broken")
    assert found["message"].startswith(message)
    assert "nomicbert export MODEL -o exported --dtype q8\nnpm run site" in found["message"]
    assert found["disabled"]


def test_a_site_needs_a_model(exports: Exports, tmp_path: Path) -> None:
    reranker = str(exports.exported("reranker"))
    done = run_node(EXAMPLE / "site.mjs", reranker, "--dtype", "fp32")
    assert done.returncode == 1
    assert "is for text-classification: the page needs vectors" in done.stderr
    done = run_node(EXAMPLE / "site.mjs")
    assert done.returncode == 1
    assert "npm run site -- MODEL" in done.stderr
    done = run_node(EXAMPLE / "site.mjs", str(tmp_path))
    assert done.returncode == 1
    assert f"nomicbert export MODEL -o {tmp_path} --dtype q8" in done.stderr
    done = run_node(EXAMPLE / "serve.mjs", str(tmp_path))
    assert done.returncode == 1
    assert "is no site: npm run site" in done.stderr


def test_a_port_in_use_is_named(minilm_site: Path) -> None:
    with served(minilm_site) as url:
        port = str(urlsplit(url).port)
        done = run_node(EXAMPLE / "serve.mjs", str(minilm_site), port)
    assert done.returncode == 1
    assert f"port {port} cannot be used (EADDRINUSE)" in done.stderr


def test_the_server_stays_in_its_folder(minilm_site: Path) -> None:
    code = """
import http.client, sys
host = sys.argv[1].split("/")[2]
up = "/.." + "%2f.." * 12 + "%2fetc%2fpasswd"
for path in [up, "/../package.json", "/%00", "/%", "/models", "/no.js"]:
    connection = http.client.HTTPConnection(host, timeout=20)
    connection.request("GET", path)
    print(connection.getresponse().status)
connection = http.client.HTTPConnection(host, timeout=20)
connection.request("GET", "/")
print(connection.getresponse().status)
"""
    with served(minilm_site) as url:
        command = [sys.executable, "-c", code, url]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["404"] * 6 + ["200"]
