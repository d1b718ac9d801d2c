"""The pages for people: GET /try (and / for a browser), /docs, and their files under /pages.

They are open, since they hold no secrets: the requests of their scripts need the key. They load
nothing from elsewhere, and their policy makes the browser refuse it.

Source: RFC 9110, sections 12.5.1 (Accept) and 13.1.2 (If-None-Match); Content Security Policy
Level 3 and Trusted Types, W3C.
"""

import functools
import hashlib
import re
from pathlib import Path

from nomicbert.serve.dialects import health, ollama
from nomicbert.serve.http.answers import Answer, Header
from nomicbert.serve.http.endpoint import Dialect, check_key
from nomicbert.serve.http.exchange import Exchange
from nomicbert.serve.http.problems import Problem, Reason
from nomicbert.serve.service import Service

FOLDER = Path(__file__).parent.parent / "pages"
TYPES = {
    ".css": b"text/css; charset=utf-8",
    ".html": b"text/html; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".svg": b"image/svg+xml",
}
# What /pages/NAME may be.
FILES = ("docs.js", "icon.svg", "page.css", "pictures.js", "schema.js", "shared.js", "try.js")
# Without 'unsafe-inline' no text can bring a script along; Trusted Types refuse innerHTML.
POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    b"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    b"require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS: tuple[Header, ...] = (
    (b"content-security-policy", POLICY),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-cache"),
)
QUALITY = re.compile(r"0(\.\d{0,3})?|1(\.0{0,3})?")

DIALECT = Dialect("pages", {}, health.render)


async def root(service: Service, exchange: Exchange) -> Answer:
    """GET /: the start page for a browser; for all others TEI's and ollama's probe, with the key.

    Both have the same status, since some probes ask for text/html too; but a probe without the
    key that it needs is refused.

    Raises: Problem: a probe without a key that is needed.
    """
    if not prefers_html(exchange.headers.get("accept", "")):
        check_key(exchange, service.settings.api_keys)
        return await ollama.root(service, exchange)
    status = 503 if await service.is_ready() else 200
    answer = _page("try.html", exchange, status)
    answer.headers.append((b"vary", b"accept"))
    return answer


async def start(_service: Service, exchange: Exchange) -> Answer:
    """GET /try: embed, compare and rank texts."""
    return _page("try.html", exchange)


async def docs(_service: Service, exchange: Exchange) -> Answer:
    """GET /docs: the routes of /openapi.json."""
    return _page("docs.html", exchange)


async def file(_service: Service, exchange: Exchange) -> Answer:
    """GET /pages/NAME.

    Raises: Problem: no such file.
    """
    name: str = exchange.scope["path_params"]["name"]
    if name not in FILES:
        raise Problem(Reason.NOT_FOUND, f"no such file: {name[:200]}")
    return _page(name, exchange)


def prefers_html(accept: str) -> bool:
    """Whether an Accept header asks for HTML before all else, as that of a browser does.

    text/html must be named, and be the first of the types with the highest quality. A wildcard is
    none: curl and probes send `*/*`.
    """
    found = [_media_range(part) for part in accept.split(",")]
    best = max(quality for _, quality in found)
    first = next(kind for kind, quality in found if quality == best)
    return best > 0 and first == "text/html"


def _media_range(part: str) -> tuple[str, float]:
    """Type and quality; an invalid quality is 0."""
    kind, *parameters = (piece.strip().lower() for piece in part.split(";"))
    quality = 1.0
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name == "q":
            quality = float(value) if QUALITY.fullmatch(value) else 0.0
    return kind, quality


@functools.cache
def _read(name: str) -> tuple[bytes, bytes]:
    """Content and entity tag of a file."""
    content = (FOLDER / name).read_bytes()
    return content, f'"{hashlib.sha256(content).hexdigest()[:32]}"'.encode()


def _page(name: str, exchange: Exchange, status: int = 200) -> Answer:
    """A file, or 304 if the client has it."""
    content, tag = _read(name)
    known = exchange.headers.get("if-none-match", "")
    tags = {each.strip().removeprefix("W/") for each in known.split(",")}
    if status == 200 and tags & {"*", tag.decode()}:
        status, content = 304, b""
    return Answer([content], status, TYPES[Path(name).suffix], [*HEADERS, (b"etag", tag)])
