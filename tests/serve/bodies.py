"""Random bodies against every POST route: `python -m tests.serve.bodies --cases 10000`.

Bodies are derived from the structs that they are read with: right, nearly right (a field of another
type, missing, or with an extreme value), and any JSON; some have damaged bytes. Whatever comes, the
server answers with a documented status and JSON, and meets no error that it did not foresee.

Prints how often each status occurred; a failure is shown with its shortest body.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import http.client
import json
import logging
import secrets
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import hypothesis
import msgspec
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from nomicbert.serve.dialects import (
    cohere,
    nomic,
    ollama,
    ollama_models,
    openai,
    rerank,
    root,
    score,
    tei,
    tei_rerank,
    tei_tokens,
)
from tests.support.rerankers import build_reranker
from tests.support.served import JSON, MODEL, NDJSON, tiny
from tests.support.serving import InThread, in_thread

RERANKER = "reranker"


class Rerank(rerank.DocumentsRequest, kw_only=True):
    """Both bodies of POST /rerank, which `texts` decides."""

    texts: list[str] | None = None
    truncate: bool | None = None
    return_text: bool | None = None


# path -> the struct of its body, and the statuses that it may answer with
OPENAI, TEI, NOMIC = {200, 400, 404, 413, 415}, {200, 400, 413, 415, 422}, {200, 413, 415, 422}
OLLAMA = {200, 400, 404, 413}
ROUTES: dict[str, tuple[type[msgspec.Struct] | None, set[int]]] = {
    "/v1/embeddings": (openai.EmbeddingsRequest, OPENAI),
    "/embeddings": (openai.EmbeddingsRequest, OPENAI),
    "/v1/embedding/text": (nomic.TextRequest, NOMIC),
    "/embed": (tei.EmbedRequest, TEI),
    "/": (root.AnyRequest, TEI),
    "/invocations": (nomic.SagemakerRequest, TEI),
    "/vertex": (tei.VertexRequest, TEI),
    "/similarity": (tei.SimilarityRequest, TEI),
    "/embed_all": (tei.EmbedRequest, TEI),
    "/tokenize": (tei_tokens.TokenizeRequest, TEI),
    "/decode": (tei_tokens.DecodeRequest, TEI),
    "/embed_sparse": (None, {424}),
    "/predict": (tei_rerank.PredictRequest, TEI),
    "/rerank": (Rerank, OPENAI | TEI),
    "/v1/rerank": (rerank.DocumentsRequest, OPENAI),
    "/v2/rerank": (rerank.DocumentsRequest, OPENAI),
    "/score": (score.ScoreRequest, OPENAI),
    "/v1/score": (score.ScoreRequest, OPENAI),
    "/v1/embedding/image": (None, {501}),
    "/v1/embed": (cohere.CohereEmbedRequest, OPENAI),
    "/v2/embed": (cohere.CohereEmbedRequest, OPENAI),
    "/api/embed": (ollama.OllamaEmbedRequest, OLLAMA),
    "/api/embeddings": (ollama.OllamaEmbeddingsRequest, OLLAMA),
    "/api/show": (ollama_models.OllamaShowRequest, OLLAMA),
    "/api/generate": (None, {400}),
    "/api/chat": (None, {400}),
    "/api/pull": (None, {501}),
    "/api/push": (None, {501}),
    "/api/create": (None, {501}),
    "/api/copy": (None, {501}),
}
# routes that read their body come up more often than those that refuse any
OFTEN = [path for path, (struct, _) in ROUTES.items() for _ in range(4 if struct else 1)]

TEXT = st.one_of(
    st.text(max_size=40), st.sampled_from(["", "a", "a" * 100, "b " * 80, "\0", "search_query: x"])
)
TOKEN = st.one_of(st.integers(0, 383), st.sampled_from([101, 102, -1, 384, 2**31, 2**64, 10**40]))
IDS = st.one_of(
    st.lists(st.integers(0, 383), max_size=8).map(lambda ids: [101, *ids, 102]),
    st.lists(TOKEN, max_size=4),
)
INPUTS = st.one_of(TEXT, st.lists(TEXT, max_size=4), IDS, st.lists(IDS, max_size=3))
# Values that a field of this name may well have.
NAMED: dict[str, st.SearchStrategy[Any]] = {
    "input": INPUTS,
    "inputs": INPUTS,
    "texts": st.lists(TEXT, max_size=4),
    "ids": st.one_of(IDS, st.lists(IDS, max_size=3)),
    "model": st.sampled_from([MODEL, MODEL, MODEL, RERANKER, "other", ""]),
    "prompt_name": st.sampled_from(["search_query", "clustering", "none"]),
    "task_type": st.sampled_from(["search_query", "search_document", "none", ""]),
    "dimensions": st.sampled_from([1, 8, 64, 65, 0]),
    "dimensionality": st.sampled_from([1, 8, 64, 65, 0]),
    "on_long": st.sampled_from(["error", "end", "chunk", "mean", "start"]),
    "max_length": st.sampled_from([2, 3, 10, 64, 65]),
    "max_tokens_per_text": st.sampled_from([1, 5, 100, 10**9, 0]),
    "input_type": st.sampled_from(["search_query", "clustering", "image", "none"]),
    "output_dimension": st.sampled_from([1, 8, 64, 65, 0]),
    "max_tokens": st.sampled_from([2, 3, 10, 64, 10**9]),
    "num_ctx": st.sampled_from([2, 3, 10, 64, 10**9]),
    "name": st.sampled_from([MODEL, f"{MODEL}:latest", "other", ""]),
    "max_tokens_per_doc": st.sampled_from([1, 5, 100, 10**9, 0]),
    "top_n": st.sampled_from([1, 3, 10**9, 0, -1]),
    "truncate_prompt_tokens": st.sampled_from([-1, 4, 64, 3, 65, 0]),
}
ODD = st.sampled_from(
    [
        None,
        True,
        False,
        0,
        -1,
        1.5,
        1e308,
        2**63,
        -(10**30),
        "",
        "\0",
        [],
        {},
        [[]],
        [None],
        {"a": 1},
    ]
)
WILD: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=10), ODD),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


def _has_structs(kind: Any) -> bool:
    """Whether values are objects, or lists of them."""
    if isinstance(kind, msgspec.inspect.UnionType):
        return any(_has_structs(one) for one in kind.types)
    kind = kind.item_type if isinstance(kind, msgspec.inspect.ListType) else kind
    return isinstance(kind, msgspec.inspect.StructType)


def of_type(kind: Any, name: str) -> st.SearchStrategy[Any]:
    """Values of a type of msgspec."""
    found: st.SearchStrategy[Any]
    if name in NAMED and not _has_structs(kind):
        found = NAMED[name]
        nullable = isinstance(kind, msgspec.inspect.UnionType) and kind.includes_none
        return st.one_of(found, st.none()) if nullable else found
    match kind:
        case msgspec.inspect.UnionType():
            found = st.one_of([of_type(one, name) for one in kind.types])
        case msgspec.inspect.StructType():
            found = of_struct(kind.cls)
        case msgspec.inspect.ListType():
            found = st.lists(of_type(kind.item_type, ""), max_size=4)
        case msgspec.inspect.LiteralType():
            found = st.sampled_from(kind.values)
        case msgspec.inspect.BoolType():
            found = st.booleans()
        case msgspec.inspect.IntType():
            found = st.integers()
        case msgspec.inspect.NoneType():
            found = st.none()
        case msgspec.inspect.StrType():
            found = TEXT
        case msgspec.inspect.DictType():
            found = of_struct(tei.Sentences)
        case _:
            raise TypeError(f"no values for {kind}")
    return found


def of_struct(struct: type[msgspec.Struct]) -> st.SearchStrategy[dict[str, Any]]:
    """Right objects, whose optional keys may be missing."""
    kind = msgspec.inspect.type_info(struct)
    assert isinstance(kind, msgspec.inspect.StructType)
    if struct in OWN:
        return OWN[struct]
    needed = {f.encode_name: of_type(f.type, f.encode_name) for f in kind.fields if f.required}
    others = {f.encode_name: of_type(f.type, f.encode_name) for f in kind.fields if not f.required}
    return st.fixed_dictionaries(needed, optional=others)


# Bodies that are seldom right if every field is drawn by itself.
RERANKERS = st.sampled_from([RERANKER, RERANKER, None, MODEL])
TEXTS = st.lists(TEXT, min_size=1, max_size=4)
OWN: dict[type[msgspec.Struct], st.SearchStrategy[dict[str, Any]]] = {
    score.ScoreRequest: st.sampled_from(score.SIDES).flatmap(
        lambda sides: st.fixed_dictionaries(
            {sides[0]: TEXT, sides[1]: st.one_of(TEXT, TEXTS)},
            optional={
                "model": RERANKERS,
                "truncate_prompt_tokens": st.sampled_from([-1, 4, 64, None]),
                "use_activation": st.one_of(st.booleans(), st.none()),
            },
        )
    ),
    tei_rerank.PredictRequest: st.fixed_dictionaries(
        {
            "inputs": st.one_of(
                TEXT,
                st.lists(TEXT, min_size=1, max_size=2),
                st.lists(st.lists(TEXT, min_size=1, max_size=2), min_size=1, max_size=4),
            )
        },
        optional={"raw_scores": st.booleans(), "truncate": st.booleans()},
    ),
}


@st.composite
def nearly(draw: st.DrawFn, struct: type[msgspec.Struct]) -> Any:
    """A right object with one or two mistakes."""
    found = draw(of_struct(struct))
    for _ in range(draw(st.integers(1, 2))):
        names = [*found, "unheard"]
        name = draw(st.sampled_from(names))
        if draw(st.booleans()):
            found[name] = draw(st.one_of(ODD, WILD))
        else:
            found.pop(name, None)
    return found


@st.composite
def cases(draw: st.DrawFn) -> tuple[str, bytes, dict[str, str]]:
    """A path, a body, and headers."""
    path = draw(st.sampled_from(OFTEN))
    struct, _ = ROUTES[path]
    kinds = (
        [WILD] if struct is None else [of_struct(struct), of_struct(struct), nearly(struct), WILD]
    )
    value = draw(st.one_of(kinds))
    body = json.dumps(value, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")
    headers = dict(JSON)
    if path.endswith("/embeddings"):
        if draw(st.integers(0, 3)) == 0:
            headers["accept"] = NDJSON
        if draw(st.integers(0, 5)) == 0 and isinstance(value, dict):
            headers["content-type"] = NDJSON
            query = {key: str(item) for key, item in value.items() if key != "input"}
            path += "?" + urlencode(query, errors="replace")
            lines = value.get("input")
            lines = lines if isinstance(lines, list) else [lines]
            body = b"\n".join(json.dumps(line).encode() for line in lines)
    if draw(st.integers(0, 7)) == 0:  # damage
        place = draw(st.integers(0, len(body)))
        body = body[:place] + draw(st.binary(max_size=4)) + body[place + draw(st.integers(0, 4)) :]
    if draw(st.integers(0, 7)) == 0:
        headers["x-on-long"] = draw(st.sampled_from(["end", "mean", "chunk", "x"]))
    return path, body, headers


class Bodies:
    """Sends cases to one server on one connection."""

    def __init__(self, server: InThread) -> None:
        self._server = server
        place = urlsplit(server.url)
        self._connection = http.client.HTTPConnection(place.hostname, place.port, timeout=120)
        self.counts: collections.Counter[tuple[str, int]] = collections.Counter()

    def close(self) -> None:
        self._connection.close()

    def check(self, path: str, body: bytes, headers: dict[str, str]) -> None:
        """Send one case."""
        self._connection.request("POST", path, body, headers)
        answer = self._connection.getresponse()
        content = answer.read()
        route = path.partition("?")[0]
        self.counts[route, answer.status] += 1
        assert answer.status in ROUTES[route][1], (answer.status, content[:500])
        kind = answer.getheader("content-type")
        if kind == NDJSON:
            assert answer.status == 200
            for line in content.splitlines():
                json.loads(line)
        else:
            assert kind == "application/json"
            json.loads(content)
        assert self.internal_errors() == 0, content

    def internal_errors(self) -> float:
        """Requests that met a bug."""
        return float(self._server.service.metrics.internal_errors._value.get())


class Tracebacks(logging.Handler):
    """Keeps log records with a traceback."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info or record.levelno >= logging.ERROR:
            self.found.append(record)


def run(server: InThread, count: int, phases: Sequence[Phase] = tuple(Phase)) -> Bodies:
    """Send this many cases; raise at a failure, with the shortest body that shows it."""
    bodies = Bodies(server)
    tracebacks = Tracebacks()
    logging.getLogger().addHandler(tracebacks)

    @settings(
        max_examples=count,
        phases=phases,
        deadline=None,
        database=None,
        suppress_health_check=[*HealthCheck],
    )
    @given(cases())
    def check(case: tuple[str, bytes, dict[str, str]]) -> None:
        bodies.check(*case)

    try:
        check()
    finally:
        bodies.close()
        logging.getLogger().removeHandler(tracebacks)
    assert tracebacks.found == []
    return bodies


@contextlib.contextmanager
def small_server(place: Path) -> Iterator[InThread]:
    """A server whose limits random bodies can reach."""
    models = tiny(place), build_reranker(place / RERANKER), build_reranker(place / "three", 3)
    with in_thread(*models, max_length=64, max_response_bytes=20_000) as server:
        yield server


def main() -> int:
    """Run, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=None, help="default: a new one")
    chosen = parser.parse_args()
    seed = secrets.randbelow(10**6) if chosen.seed is None else chosen.seed
    logging.getLogger("nomicbert").setLevel(logging.ERROR)
    began = time.monotonic()
    sys.stdout.write(f"seed {seed}\n")
    hypothesis.core.global_force_seed = seed
    with tempfile.TemporaryDirectory() as place, small_server(Path(place)) as server:
        bodies = run(server, chosen.cases)
    for (route, status), number in sorted(bodies.counts.items()):
        sys.stdout.write(f"  {route:<24}{status}{number:>8}\n")
    total = sum(bodies.counts.values())
    sys.stdout.write(f"{total} bodies, {time.monotonic() - began:.0f} s, no internal error\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
