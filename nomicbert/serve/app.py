"""All routes, as an ASGI application.

Where in the flow: `server` runs it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, compile_path
from starlette.types import Receive, Scope, Send

from nomicbert.serve.dialects import (
    cohere,
    health,
    ndjson,
    nomic,
    ollama,
    ollama_models,
    openai,
    openapi,
    pages,
    rerank,
    root,
    score,
    tei,
    tei_info,
    tei_rerank,
    tei_tokens,
)
from nomicbert.serve.http.endpoint import Dialect, Endpoint, Handler
from nomicbert.serve.http.exchange import Bodies, Exchange
from nomicbert.serve.http.problems import Problem, Reason
from nomicbert.serve.names import Names
from nomicbert.serve.service import Service
from nomicbert.serve.settings import ServeSettings

if TYPE_CHECKING:
    from nomicbert.serve.tracing import Tracing


@dataclass(frozen=True)
class Page:
    """One route.

    Attributes:
        method: of HTTP.
        path: of the address.
        dialect: of its errors.
        handler: makes the answer.
        is_open: whether it needs no key.
    """

    method: str
    path: str
    dialect: Dialect
    handler: Handler
    is_open: bool = False


PAGES: Sequence[Page] = (
    Page("POST", "/v1/embeddings", openai.DIALECT, ndjson.embeddings),
    Page("POST", "/embed", tei.DIALECT, tei.embed),
    Page("POST", "/v1/embedding/text", nomic.DIALECT, nomic.text),
    Page("POST", "/embeddings", openai.DIALECT, ndjson.embeddings),
    Page("POST", "/", tei.DIALECT, root.root),
    Page("POST", "/invocations", tei.DIALECT, root.invocations),
    Page("POST", "/vertex", tei.DIALECT, tei.vertex),
    Page("POST", "/similarity", tei.DIALECT, tei.similarities),
    Page("POST", "/embed_all", tei.DIALECT, tei.embed_all),
    Page("POST", "/embed_sparse", tei.DIALECT, tei.wrong_task("sparse")),
    Page("POST", "/predict", tei.DIALECT, tei_rerank.predict),
    Page("POST", "/rerank", tei.DIALECT, tei_rerank.either),
    Page("POST", "/v1/rerank", cohere.DIALECT, rerank.v1),
    Page("POST", "/v2/rerank", cohere.DIALECT, rerank.v2),
    Page("POST", "/score", openai.DIALECT, score.score),
    Page("POST", "/v1/score", openai.DIALECT, score.score),
    Page("POST", "/tokenize", tei.DIALECT, tei_tokens.tokenize),
    Page("POST", "/decode", tei.DIALECT, tei_tokens.decode_ids),
    Page("GET", "/info", tei.DIALECT, tei_info.info),
    Page("GET", "/v1/models", openai.DIALECT, openai.models),
    Page("GET", "/models", openai.DIALECT, openai.models),
    Page("GET", "/v1/models/{name:path}", openai.DIALECT, openai.model),
    Page("GET", "/v1/user", nomic.DIALECT, nomic.user),
    Page("POST", "/v1/embedding/image", nomic.DIALECT, nomic.image),
    Page("POST", "/v1/embed", cohere.DIALECT, cohere.embed("1")),
    Page("POST", "/v2/embed", cohere.DIALECT, cohere.embed("2")),
    Page("POST", "/api/embed", ollama.DIALECT, ollama.embed),
    Page("POST", "/api/embeddings", ollama.DIALECT, ollama.embeddings),
    Page("GET", "/api/tags", ollama.DIALECT, ollama_models.tags),
    Page("GET", "/api/ps", ollama.DIALECT, ollama_models.running),
    Page("GET", "/api/version", ollama.DIALECT, ollama_models.version),
    Page("POST", "/api/show", ollama.DIALECT, ollama_models.show),
    Page("POST", "/api/generate", ollama.DIALECT, ollama_models.wrong_task("generate")),
    Page("POST", "/api/chat", ollama.DIALECT, ollama_models.wrong_task("chat")),
    Page("POST", "/api/pull", ollama.DIALECT, ollama_models.unsupported),
    Page("POST", "/api/push", ollama.DIALECT, ollama_models.unsupported),
    Page("POST", "/api/create", ollama.DIALECT, ollama_models.unsupported),
    Page("POST", "/api/copy", ollama.DIALECT, ollama_models.unsupported),
    Page("DELETE", "/api/delete", ollama.DIALECT, ollama_models.unsupported),
    Page("GET", "/health/live", health.DIALECT, health.live, is_open=True),
    Page("GET", "/health/ready", health.DIALECT, health.ready, is_open=True),
    Page("GET", "/health", health.DIALECT, health.health, is_open=True),
    Page("GET", "/", health.DIALECT, pages.root, is_open=True),  # it checks the key of a probe
    Page("GET", "/ping", health.DIALECT, health.health),
    Page("GET", "/metrics", health.DIALECT, health.metrics),
    Page("GET", "/openapi.json", health.DIALECT, openapi.document),
    Page("GET", "/try", pages.DIALECT, pages.start, is_open=True),
    Page("GET", "/docs", pages.DIALECT, pages.docs, is_open=True),
    Page("GET", "/pages/{name}", pages.DIALECT, pages.file, is_open=True),
)


class App:
    """Calls the endpoint of an address directly; the router has all other cases.

    An endpoint answers every error itself, so it needs none of the router's layers, which take a
    fifth of the time of a short request outside of the model.
    """

    def __init__(self, direct: dict[tuple[str, str], Endpoint], router: Starlette) -> None:
        """`direct`: (method, path) -> endpoint."""
        self._direct = direct
        self._router = router

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        endpoint = None
        if scope["type"] == "http":
            endpoint = self._direct.get((scope["method"], scope["path"]))
        await (self._router if endpoint is None else endpoint)(scope, receive, send)


def make_app(settings: ServeSettings, names: Names) -> tuple[App, Service]:
    """The application and its state; models are loaded by `Service.start`."""
    service = Service(settings, names, [(page.dialect.name, page.path) for page in PAGES])
    service.tracing = start_tracing(settings)
    endpoints = {
        (page.method, page.path): Endpoint(
            service,
            page.dialect,
            page.path,
            page.handler,
            is_open=page.is_open or (settings.open_metrics and page.path == "/metrics"),
        )
        for page in PAGES
    }
    routes = [
        Route(path, endpoint, methods=[method]) for (method, path), endpoint in endpoints.items()
    ]
    middleware = []
    if settings.cors_origins:
        cors = Middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=[
                "x-request-id",
                "x-embedding-fingerprint",
                "x-truncated-texts",
                "retry-after",
                "retry-after-ms",
            ],
        )
        middleware.append(cors)
    app = Starlette(
        routes=routes, middleware=middleware, exception_handlers={HTTPException: _no_route}
    )
    app.router.redirect_slashes = False
    # with CORS every answer passes the router's middleware; only the router fills in patterns
    direct = {key: endpoint for key, endpoint in endpoints.items() if "{" not in key[1]}
    return App({} if middleware else direct, app), service


def start_tracing(settings: ServeSettings) -> "Tracing | None":
    """What makes the spans of requests, if there is a collector to send them to."""
    if settings.otlp_endpoint is None:
        return None
    # only here, so that a server without traces does not load opentelemetry
    from nomicbert.serve.tracing import Tracing

    return Tracing(settings.otlp_endpoint, settings.otlp_service_name)


async def _no_route(request: Request, error: Exception) -> Response:
    """An address or method that does not exist."""
    assert isinstance(error, HTTPException)
    path = request.url.path
    headers = {"x-request-id": Exchange(request.scope, request.receive, Bodies(0)).id}
    if error.status_code == 405:
        # the router knows the methods of the first of the routes with this address only
        allowed = {page.method for page in PAGES if _fits(page, path)}
        headers["allow"] = ", ".join(sorted(allowed | ({"HEAD"} if "GET" in allowed else set())))
        problem = Problem(Reason.METHOD, f"no such method: {request.method} {path[:200]}")
    else:
        problem = Problem(Reason.NOT_FOUND, f"no such route: {request.method} {path[:200]}")
    answer = health.DIALECT.refuse(problem)
    assert isinstance(answer.content, list)
    return Response(b"".join(answer.content), answer.status, headers, "application/json")


def _fits(page: Page, path: str) -> bool:
    return bool(compile_path(page.path)[0].fullmatch(path))
