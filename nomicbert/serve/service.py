"""From what a request wants to its vectors or scores: the steps that all dialects share.

Where in the flow: a dialect calls `embed` with a Wanted, or `score` with WantedPairs. Here stand
the checks that need no computing (state, size of the answer), admission, tokenising, and the wait
for the engine.
"""

import asyncio
import datetime
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from nomicbert.serve import models
from nomicbert.serve.admission import Admission, Place, default_limit
from nomicbert.serve.embedded import Embedded, check_fingerprint
from nomicbert.serve.engine import isolated
from nomicbert.serve.engine.cache import VectorCache
from nomicbert.serve.engine.engine import STOP, Engine
from nomicbert.serve.engine.jobs import Rows
from nomicbert.serve.engine.self_test import SelfTest
from nomicbert.serve.http.exchange import Bodies, Exchange
from nomicbert.serve.http.problems import Problem, Reason
from nomicbert.serve.logs import RequestLog
from nomicbert.serve.metrics import Metrics
from nomicbert.serve.models import Loaded, load_aside
from nomicbert.serve.names import Names
from nomicbert.serve.pairs import WantedPairs, tokenise_pairs
from nomicbert.serve.reports import PromptReminder, report, request_fields
from nomicbert.serve.scored import Scored
from nomicbert.serve.served import ServedEmbedder, ServedModel
from nomicbert.serve.settings import ServeSettings
from nomicbert.serve.tokens import Tokenised, Wanted, tokenise

if TYPE_CHECKING:
    from nomicbert.serve.tracing import Tracing

Result = TypeVar("Result")
Kind = TypeVar("Kind", bound=ServedModel)

# Requests of at most this many characters are tokenised on the event loop: a thread costs more.
SHORT = 4000
# Bodies of the largest size that may be held at a time.
BODIES = 8


class Service:
    """The state of a server.

    Attributes:
        settings, names, metrics: of this server.
        started: when it started, UTC.
        loaded, engine: once the models are ready.
        draining: SIGTERM has come; requests are still answered.
        stopping: no more requests are answered.
        in_flight: requests without an answer yet.
        bodies: counts their bodies.
        request_log: writes the line of a request, or None.
        tracing: makes the spans of requests, or None without --otlp-endpoint.
    """

    def __init__(
        self, settings: ServeSettings, names: Names, routes: Sequence[tuple[str, str]]
    ) -> None:
        """Nothing is loaded yet."""
        self.settings = settings
        self.names = names
        self.started = datetime.datetime.now(datetime.timezone.utc)
        self.metrics = Metrics(routes, names.primary)
        self.loaded: Loaded | None = None
        self.engine: Engine | None = None
        self.admission: Admission | None = None
        self.draining = False
        self.stopping = False
        self.in_flight = 0
        self.bodies = Bodies(BODIES * settings.payload_limit)
        self.request_log: RequestLog | None = None
        self.tracing: Tracing | None = None
        self._self_test: SelfTest | None = None
        self._remind = PromptReminder()
        self._pool = ThreadPoolExecutor(settings.tokenizer_threads, "tokenizer")

    async def start(self) -> None:
        """Load the models and start the engine; the self-test must pass.

        Raises: NomicBertError, ValueError: see `load`. RuntimeError: the self-test fails.
        """
        loop = asyncio.get_running_loop()
        settings, cache = self.settings, VectorCache(self.settings.cache_bytes)
        load = isolated.load if settings.isolate else models.load
        loaded = await load_aside(lambda: load(settings, self.names))
        threads = 1 if settings.isolate else settings.threads
        parts = loaded.replicas, loaded.budgets, cache, self.metrics
        engine = Engine(*parts, threads, loaded.workers)
        engine.rate = max(loaded.rates)
        rate = engine.rate * len(loaded.replicas)
        limit = settings.max_waiting_tokens or default_limit(rate)
        engine.start(loop)
        self.engine = engine
        self.admission = Admission(limit, settings.max_waiting_requests, engine)
        self._watch(engine, cache)
        if (workers := loaded.workers) is not None:
            self.metrics.read_from(self.metrics.worker_restarts, lambda: workers.restarts)
        self_test = SelfTest(engine, loaded.models)
        await self_test.run(timeout=None)
        for model in loaded.models:
            runs = model.runs
            self.metrics.model(model.name, runs.compute_dtype, runs.backend, model.space)
        if problem := await self_test.problem():
            raise RuntimeError(problem)
        self.loaded, self._self_test = loaded, self_test

    def stop(self, *, at_once: bool = False) -> None:
        """End all threads; what waits is dropped, and with `at_once` also what is computed."""
        if self.engine is not None:
            self.engine.stop(0.0 if at_once else STOP)
        self._pool.shutdown(wait=False, cancel_futures=True)
        if self.tracing is not None:
            self.tracing.stop(0.0) if at_once else self.tracing.stop()

    @property
    def models(self) -> list[ServedModel]:
        """The models.

        Raises: Problem: they are not loaded yet, or the server is stopping.
        """
        if self.stopping:
            raise Problem(Reason.STOPPING, "the server is stopping", retry_after=1.0)
        if self.loaded is None:
            raise Problem(Reason.LOADING, "the models are being loaded", retry_after=2.0)
        return self.loaded.models

    def find(self, name: str | None) -> ServedEmbedder:
        """The embedding model of this name; without one, the first.

        Raises: Problem: see `find_kind`.
        """
        return self.find_kind(name, ServedEmbedder)

    def find_kind(self, name: str | None, kind: type[Kind]) -> Kind:
        """The model of this name; without one, the first of this kind.

        Raises: Problem: unknown, of another kind, or not loaded yet.
        """
        models = self.models
        index = self.names.find(name)
        if index is None:
            found = next((model for model in models if isinstance(model, kind)), None)
            if found is None:
                raise Problem(Reason.WRONG_TASK, f"the model is not {kind.task} model")
            return found
        model = models[index]
        if not isinstance(model, kind):
            message = f"the model {name!r:.200} is not {kind.task} model"
            raise Problem(Reason.WRONG_TASK, message, "model")
        return model

    async def embed(
        self, exchange: Exchange, wanted: Wanted, *, patient: bool = False, watch: bool = True
    ) -> Embedded:
        """Compute the rows of a request.

        Args:
            exchange: the request.
            wanted: what it asks for.
            patient: wait for room in the queue, as streams do, instead of refusing.
            watch: drop the rest if the client leaves; needs a body that has been read.

        Raises: Problem, ClientGone; any error of the computation.
        """
        exchange.model = wanted.model.name
        fingerprint = wanted.model.fingerprint.of_call(wanted.finish, wanted.prompt)
        check_fingerprint(exchange, fingerprint)
        self.check_answer_size(wanted)
        self._remind(wanted)
        rows, tokenised, seconds = await self._compute(
            exchange, wanted, partial(tokenise, wanted), patient=patient, watch=watch
        )
        return Embedded(rows, tokenised, seconds, wanted, fingerprint)

    async def score(self, exchange: Exchange, wanted: WantedPairs) -> Scored:
        """Compute the logits of a request.

        Raises: Problem, ClientGone; any error of the computation.
        """
        exchange.model = wanted.model.name
        self.check_answer_size(wanted)
        computed = await self._compute(exchange, wanted, partial(tokenise_pairs, wanted))
        return Scored(*computed, wanted)

    async def _compute(
        self,
        exchange: Exchange,
        wanted: Wanted | WantedPairs,
        make: Callable[[], Tokenised],
        *,
        patient: bool = False,
        watch: bool = True,
    ) -> tuple[Rows, Tokenised, float]:
        """Admit, tokenise and compute: the rows, the job's lengths, the seconds of tokenising."""
        engine = self.engine
        assert engine is not None, "`find` has checked it"
        seconds = self.seconds(exchange)
        with await self.enter(wanted.estimate(), seconds if patient else 0.0) as place:
            began = time.perf_counter()
            if wanted.characters() <= SHORT:
                tokenised = make()
            else:
                tokenised = await exchange.wait(self.in_pool(make), seconds, watch=watch)
            tokenising = time.perf_counter() - began
            self.metrics.tokenise_seconds.observe(tokenising)
            exchange.stage("tokenise", tokenising, texts=len(wanted.inputs))
            place.leave()  # from here on the scheduler counts its tokens
            rows = await exchange.wait(engine.submit(tokenised.job), seconds, watch=watch)
        report(self.metrics, exchange, wanted, tokenised)
        return rows, tokenised, tokenising

    def check_answer_size(self, *parts: Wanted | WantedPairs) -> None:
        """Refuse an answer that would be larger than --max-response-bytes.

        Raises: Problem.
        """
        size, limit = sum(part.answer_bytes() for part in parts), self.settings.max_response_bytes
        if size > limit:
            raise Problem(
                Reason.ANSWER_SIZE,
                f"the answer would have about {size:,.0f} bytes, more than {limit:,} "
                "(--max-response-bytes): send fewer texts per request, or take the answer as a "
                "stream with accept: application/x-ndjson",
                parts[0].field,
            )

    async def enter(self, tokens: int, seconds: float = 0.0) -> Place:
        """Admit work of about this many tokens; wait `seconds` for room, as streams do.

        Raises: Problem: see `Admission.enter`.
        """
        assert self.admission is not None, "`find` has checked it"
        return await self.admission.enter(tokens, seconds)

    def in_pool(self, work: Callable[..., Result], *arguments: Any) -> "asyncio.Future[Result]":
        """Run work of a tokenizer beside the event loop."""
        return asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)

    @property
    def is_loaded(self) -> bool:
        """Whether the models are loaded and have passed the self-test."""
        return self._self_test is not None

    async def is_ready(self) -> str:
        """Why the server is not ready; "" if it is. Load is no reason."""
        if self.draining or self.stopping:
            return "draining"
        return "loading" if self._self_test is None else await self._self_test.problem()

    def _says_ready(self) -> bool:
        test = self._self_test
        return test is not None and not (self.draining or test.has_failed)

    def is_alive(self) -> bool:
        """Whether all compute threads run, and no batch takes longer than --stuck-seconds."""
        engine = self.engine
        if engine is None or self.stopping:
            return True
        return engine.busy_seconds() <= self.settings.stuck_seconds

    def log_request(self, exchange: Exchange, route: str, status: int, seconds: float) -> None:
        """Write the line of a request that has ended; probes of health have none."""
        if self.request_log is None or route.startswith("/health"):
            return
        self.request_log(request_fields(exchange, route, status, seconds))

    def _watch(self, engine: Engine, cache: VectorCache) -> None:
        metrics, scheduler = self.metrics, engine.scheduler
        metrics.read_from(metrics.waiting_texts, lambda: scheduler.waiting_texts)
        metrics.read_from(metrics.waiting_tokens, lambda: scheduler.waiting_tokens)
        metrics.read_from(metrics.queue_ahead, engine.seconds_ahead)
        metrics.read_from(metrics.in_flight, lambda: self.in_flight)
        metrics.read_from(metrics.cache_bytes, lambda: cache.bytes)
        metrics.read_from(metrics.cache_hits, lambda: cache.hits)
        metrics.read_from(metrics.cache_misses, lambda: cache.misses)
        metrics.read_from(metrics.draining, lambda: self.draining)
        metrics.read_from(metrics.ready, self._says_ready)

    def seconds(self, exchange: Exchange) -> float:
        """The deadline of a request.

        Raises: Problem: it asks for none that makes sense.
        """
        given = exchange.headers.get("x-request-timeout-ms", "")
        if not given:
            return self.settings.max_queue_seconds
        if not (given.isdecimal() and len(given) < 10 and int(given)):
            raise Problem(
                Reason.INVALID, f"x-request-timeout-ms must be a number of ms, not {given[:80]!r}"
            )
        return min(int(given) / 1000, self.settings.max_queue_seconds)
