"""Whether the server lives and is ready, and its metrics."""

from nomicbert.serve.http.answers import Answer, as_json
from nomicbert.serve.http.endpoint import Dialect
from nomicbert.serve.http.exchange import Exchange
from nomicbert.serve.http.problems import Problem
from nomicbert.serve.metrics import CONTENT_TYPE
from nomicbert.serve.service import Service


def render(_status: int, problem: Problem) -> object:
    """The form of an error of these routes, and of addresses that do not exist."""
    return {"error": {"message": problem.message, "type": problem.reason.value}}


DIALECT = Dialect("health", {}, render)


async def live(service: Service, _exchange: Exchange) -> Answer:
    """GET /health/live: 503 asks to be restarted."""
    alive = service.is_alive()
    return as_json({"alive": alive}, 200 if alive else 503)


async def ready(service: Service, _exchange: Exchange) -> Answer:
    """GET /health/ready: 503 asks for no traffic. Load is no reason; 429 is for that."""
    reason = await service.is_ready()
    ahead = 0.0 if service.engine is None else service.engine.seconds_ahead()
    state = {"ready": not reason, "reason": reason, "queue_seconds_ahead": round(ahead, 3)}
    return as_json(state, 503 if reason else 200)


async def health(service: Service, _exchange: Exchange) -> Answer:
    """GET /health and /ping, and / of probes, as TEI: an empty 200 when ready."""
    return Answer([b""], 503 if await service.is_ready() else 200)


async def metrics(service: Service, _exchange: Exchange) -> Answer:
    """GET /metrics."""
    return Answer([service.metrics.render()], media=CONTENT_TYPE.encode())
