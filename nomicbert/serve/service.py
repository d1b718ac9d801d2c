"""From what a request wants to its vectors: the steps that all dialects share.

Where in the flow: a dialect calls `embed` with a Wanted. Here stand the checks that need no
computing (state, fingerprint, size of the answer), admission, tokenising, and the wait for the
engine.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

from nomicbert.serve.admission import Admission
from nomicbert.serve.answers import Header
from nomicbert.serve.cache import VectorCache
from nomicbert.serve.engine import Engine
from nomicbert.serve.exchange import Exchange
from nomicbert.serve.jobs import Group, Job
from nomicbert.serve.logs import log_line
from nomicbert.serve.metrics import Metrics
from nomicbert.serve.models import Loaded, Names, ServedModel, load, self_test_ids
from nomicbert.serve.problems import Problem, Reason
from nomicbert.serve.settings import ServeSettings
from nomicbert.serve.tokens import Tokenised, Wanted, tokenise
from nomicbert.vectors.fingerprint import matches
from nomicbert.vectors.pooling import Finish

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

# Requests of at most this many characters are tokenised on the event loop: a thread costs more.
SHORT = 4000
# Seconds of work that may wait, without --max-waiting-tokens, and the least number of tokens.
QUEUE_SECONDS = 30
LEAST_WAITING = 1 << 19
# The self-test of readiness is repeated after this many seconds.
SELF_TEST_SECONDS = 30.0
SELF_TEST_TIMEOUT = 10.0


@dataclass(frozen=True)
class Embedded:
    """The rows of a request.

    Attributes:
        wanted: what was asked for.
        rows: per text (dim,) fp32, or (tokens, hidden_size).
        tokenised: lengths and cuts.
        fingerprint: of the vectors.
    """

    wanted: Wanted
    rows: list[Tensor]
    tokenised: Tokenised
    fingerprint: str

    @property
    def tokens(self) -> int:
        """Tokens computed, prompts and special tokens included."""
        return sum(self.tokenised.lengths)

    @property
    def truncated(self) -> int:
        """Texts that were cut."""
        return len(self.tokenised.cut)

    @property
    def usage(self) -> dict[str, int]:
        """The counts of an answer; integers only, because some clients add them up."""
        return {
            "prompt_tokens": self.tokens,
            "total_tokens": self.tokens,
            "truncated_texts": self.truncated,
        }

    @property
    def report(self) -> dict[str, list[list[int]]]:
        """With `report`: [tokens of the whole text, tokens computed] per text."""
        whole = self.tokenised.whole
        if whole is None:
            return {}
        pairs = zip(whole, self.tokenised.lengths, strict=True)
        return {"lengths": [[tokens, used] for tokens, used in pairs]}

    @property
    def headers(self) -> list[Header]:
        """Headers of the answer."""
        found = [(b"x-embedding-fingerprint", self.fingerprint.encode())]
        if self.truncated:
            found.append((b"x-truncated-texts", str(self.truncated).encode()))
        return found


class Service:
    """The state of a server.

    Attributes:
        settings, names, metrics: of this server.
        loaded, engine: once the models are ready.
        draining: SIGTERM has come; requests are still answered.
        stopping: no more requests are answered.
        in_flight: requests without an answer yet.
    """

    def __init__(
        self, settings: ServeSettings, names: Names, routes: Sequence[tuple[str, str]]
    ) -> None:
        """Nothing is loaded yet."""
        self.settings = settings
        self.names = names
        self.metrics = Metrics(routes, names.primary)
        self.loaded: Loaded | None = None
        self.engine: Engine | None = None
        self.admission: Admission | None = None
        self.draining = False
        self.stopping = False
        self.in_flight = 0
        self._tested = 0.0
        self._test_failed = ""
        self._reminded: set[int] = set()
        self._pool = ThreadPoolExecutor(settings.tokenizer_threads, "tokenizer")

    async def start(self) -> None:
        """Load the models and start the engine; the self-test must pass.

        Raises: NomicBertError, ValueError: see `load`. RuntimeError: the self-test fails.
        """
        loop = asyncio.get_running_loop()
        loaded = await loop.run_in_executor(None, load, self.settings, self.names)
        settings, cache = self.settings, VectorCache(self.settings.cache_bytes)
        engine = Engine(loaded.replicas, loaded.budgets, cache, self.metrics, settings.threads)
        engine.rate = max(loaded.rates)
        limit = settings.max_waiting_tokens
        if limit is None:
            limit = max(LEAST_WAITING, int(QUEUE_SECONDS * engine.rate))
        engine.start(loop)
        self.loaded, self.engine = loaded, engine
        self.admission = Admission(limit, settings.max_waiting_requests, engine)
        self._watch(engine, cache)
        for model in loaded.models:
            await self._self_test(model)
            self.metrics.model(
                model.name,
                str(model.embedder.model.compute_dtype).removeprefix("torch."),
                model.embedder.model.ops.name,
                model.fingerprint.of_call(Finish(), "").partition(".")[0],
            )
        if self._test_failed:
            raise RuntimeError(self._test_failed)
        self._tested = time.monotonic()

    def stop(self) -> None:
        """End all threads; what waits is dropped."""
        if self.engine is not None:
            self.engine.stop()
        self._pool.shutdown(wait=False, cancel_futures=True)

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

    def find(self, name: str | None) -> ServedModel:
        """The model of this name; without one, the first.

        Raises: Problem: unknown, or not loaded yet.
        """
        models = self.models
        return models[self.names.find(name)]

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
        engine, admission = self.engine, self.admission
        assert engine is not None, "`find` has checked it"
        assert admission is not None, "`find` has checked it"
        model = wanted.model
        exchange.model = model.name
        fingerprint = model.fingerprint.of_call(wanted.finish, wanted.prompt)
        self._check_fingerprint(exchange, fingerprint)
        self._check_answer_size(wanted)
        self._remind(wanted)
        seconds = self._seconds(exchange)
        with await admission.enter(wanted.estimate(), patient=patient) as place:
            began = time.perf_counter()
            if wanted.characters() <= SHORT:
                tokenised = tokenise(wanted)
            else:
                tokenised = await exchange.wait(
                    self.in_pool(tokenise, wanted), seconds, watch=watch
                )
            self.metrics.tokenise_seconds.observe(time.perf_counter() - began)
            place.leave()  # from here on the scheduler counts its tokens
            rows = await exchange.wait(engine.submit(tokenised.job), seconds, watch=watch)
        self._count(exchange, wanted, tokenised)
        return Embedded(wanted, rows, tokenised, fingerprint)

    def in_pool(self, work: Callable[..., Result], *arguments: Any) -> "asyncio.Future[Result]":
        """Run work of a tokenizer beside the event loop."""
        return asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)

    async def is_ready(self) -> str:
        """Why the server is not ready; "" if it is. Load is no reason."""
        engine = self.engine
        if self.draining or self.stopping:
            return "draining"
        if self.loaded is None or engine is None or not self._tested:
            return "loading"
        if engine.is_failing:
            return "the last batches have failed"
        if time.monotonic() - self._tested > SELF_TEST_SECONDS:
            self._tested = time.monotonic()
            for model in self.loaded.models:
                await self._self_test(model)
        return self._test_failed

    def is_alive(self) -> bool:
        """Whether no batch has been running for longer than --stuck-seconds."""
        return self.engine is None or self.engine.busy_seconds() <= self.settings.stuck_seconds

    def log_request(self, exchange: Exchange, route: str, status: int, seconds: float) -> None:
        """Write the line of a request that has ended."""
        if self.settings.access_log or status >= 500:
            log_line(
                "request",
                id=exchange.id,
                route=route,
                status=status,
                ms=round(seconds * 1000, 2),
                model=exchange.model,
                texts=exchange.texts,
                truncated=exchange.truncated,
            )

    def _watch(self, engine: Engine, cache: VectorCache) -> None:
        metrics, scheduler = self.metrics, engine.scheduler
        metrics.observe(metrics.waiting_texts, lambda: scheduler.waiting_texts)
        metrics.observe(metrics.waiting_tokens, lambda: scheduler.waiting_tokens)
        metrics.observe(metrics.queue_ahead, engine.seconds_ahead)
        metrics.observe(metrics.in_flight, lambda: self.in_flight)
        metrics.observe(metrics.cache_bytes, lambda: cache.bytes)
        metrics.observe(metrics.cache_hits, lambda: cache.hits)
        metrics.observe(metrics.cache_misses, lambda: cache.misses)
        metrics.observe(metrics.draining, lambda: self.draining)
        metrics.observe(metrics.ready, lambda: bool(self._tested) and not self.draining)

    async def _self_test(self, model: ServedModel) -> None:
        """Compare a vector with that of load time; one that takes too long says nothing."""
        engine = self.engine
        assert engine is not None
        ids, finish = self_test_ids(model)
        job = Job(Group(model.index), ids, finish)
        try:
            (row,) = await asyncio.wait_for(
                engine.submit(job, use_cache=False), SELF_TEST_TIMEOUT
            )
        except asyncio.TimeoutError:
            return
        except Exception as error:  # whatever the computation raises: not ready
            logger.error("the self-test of %s failed", model.name, exc_info=error)
            self._test_failed = f"the self-test of {model.name} failed"
            return
        same = model.is_same(row)
        self._test_failed = "" if same else f"the self-test of {model.name} gives another vector"

    def _check_fingerprint(self, exchange: Exchange, found: str) -> None:
        expected = exchange.headers.get("x-expect-fingerprint")
        if expected is not None and not matches(expected, found):
            raise Problem(
                Reason.FINGERPRINT,
                f"this request's vectors have the fingerprint {found}, not {expected[:200]!r}: they "
                "do not belong in that index",
            )

    def _check_answer_size(self, wanted: Wanted) -> None:
        finish, limit = wanted.finish, self.settings.max_response_bytes
        width = finish.matryoshka_dim or finish.truncate_dim or wanted.model.width
        if wanted.hidden:  # a row per token
            width = wanted.model.embedder.model.config.hidden_size
            size = wanted.estimate() * width * wanted.value_bytes
        else:
            size = len(wanted.inputs) * width * wanted.value_bytes
        if size > limit:
            raise Problem(
                Reason.ANSWER_SIZE,
                f"the answer would have about {size:,.0f} bytes, more than {limit:,} "
                "(--max-response-bytes): send fewer texts per request, or take the answer as a "
                "stream with accept: application/x-ndjson",
                wanted.field,
            )

    def _remind(self, wanted: Wanted) -> None:
        """Log once per model that its texts need a prompt and have none."""
        model = wanted.model
        if wanted.prompt or model.index in self._reminded:
            return
        self._reminded.add(model.index)
        if model.embedder.needs_prompt:
            log_line(
                "no_prompt",
                level=logging.WARNING,
                model=model.name,
                advice="this checkpoint was trained with a task prefix before every text: send "
                "prompt_name or task_type, or start with --default-prompt-name",
            )

    def _seconds(self, exchange: Exchange) -> float:
        given = exchange.headers.get("x-request-timeout-ms", "")
        if not given:
            return self.settings.max_queue_seconds
        if not given.isdecimal() or not 0 < int(given) < 10**9:
            raise Problem(
                Reason.INVALID, f"x-request-timeout-ms must be a number of ms, not {given[:80]!r}"
            )
        return min(int(given) / 1000, self.settings.max_queue_seconds)

    def _count(self, exchange: Exchange, wanted: Wanted, tokenised: Tokenised) -> None:
        metrics, job, cut = self.metrics, tokenised.job, len(tokenised.cut)
        exchange.texts += len(tokenised.lengths)
        exchange.truncated += cut
        now = time.monotonic()
        if job.started is not None:
            metrics.queue_seconds.observe(job.started - job.arrived)
            metrics.compute_seconds.observe(now - job.started)
        metrics.embedded(wanted.model.name, tokenised.lengths, cut, wanted.on_long)
        if tokenised.doubled:
            metrics.doubled_prompts.inc(tokenised.doubled)
            log_line(
                "doubled_prompt",
                level=logging.WARNING,
                id=exchange.id,
                model=wanted.model.name,
                texts=tokenised.doubled,
            )
        if cut:
            log_line(
                "truncated",
                level=logging.WARNING,
                id=exchange.id,
                model=wanted.model.name,
                texts=cut,
                of=len(tokenised.lengths),
                max_length=wanted.max_length,
            )
