"""What a request is counted and logged with: its texts, its times, and what its client should know.

Where in the flow: `service` calls `report` when the rows of a request are there.
"""

import logging
import time

from nomicbert.serve.http.exchange import Exchange
from nomicbert.serve.logs import log_line
from nomicbert.serve.metrics import Metrics
from nomicbert.serve.pairs import WantedPairs
from nomicbert.serve.tokens import Tokenised, Wanted


def report(
    metrics: Metrics, exchange: Exchange, wanted: Wanted | WantedPairs, tokenised: Tokenised
) -> None:
    """Count a request; log texts that were cut, or that have two prompts."""
    job, cut = tokenised.job, len(tokenised.cut)
    exchange.texts += len(tokenised.lengths)
    exchange.truncated += cut
    now = time.monotonic()
    if job.started is not None:
        metrics.queue_seconds.observe(job.started - job.arrived)
        metrics.compute_seconds.observe(now - job.started)
    metrics.embedded(wanted.model.name, tokenised.lengths, cut)
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


def request_fields(
    exchange: Exchange, route: str, status: int, seconds: float
) -> dict[str, object]:
    """The log line of a request that has ended."""
    return {
        "id": exchange.id,
        "route": route,
        "status": status,
        "ms": round(seconds * 1000, 2),
        "model": exchange.model,
        "texts": exchange.texts,
        "truncated": exchange.truncated,
    }


class PromptReminder:
    """Logs once per model that its texts need a prompt and have none."""

    def __init__(self) -> None:
        """No model has been named yet."""
        self._reminded: set[int] = set()

    def __call__(self, wanted: Wanted) -> None:
        """Look at a request."""
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
