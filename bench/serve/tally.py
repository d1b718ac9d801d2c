"""Counts and latencies of requests, and the arithmetic of the figures."""

import math
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median

from bench.serve.client import TIMED_OUT, Reply
from bench.serve.dialects import Variant, WrongAnswer, usage

REFUSED = (429, 503)
CHECKED = 16  # one answer in 16 is parsed in full: all of them would cost the client too much

Figures = dict[str, float | None]


@dataclass
class Tally:
    """What became of the requests of a run.

    Attributes:
        sent: requests, counted before each is sent. The outcomes below are counted separately.
        answered: status 200 with the vectors asked for.
        refused: status 429 or 503, by status.
        failed: anything else, by kind: "status 500", "reset", "wrong answer", ...
        timed_out: requests without an answer in time.
        within: answers that came before `until`.
        until: time.perf_counter() of the end of the window, for `within`.
        tokens: sum of `usage.total_tokens` of answers; `counted` is the number of answers with it.
        drawn: sum of the tokens drawn, of answered requests.
        texts: of answered requests.
        seconds: latency of each answer.
        refusals: latency of each refusal, in seconds.
        example: the first failure in words.
    """

    sent: int = 0
    answered: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    timed_out: int = 0
    within: int = 0
    until: float = math.inf
    tokens: int = 0
    counted: int = 0
    drawn: int = 0
    texts: int = 0
    seconds: "array[float]" = field(default_factory=lambda: array("d"))
    refusals: "array[float]" = field(default_factory=lambda: array("d"))
    example: str = ""

    def add(
        self, reply: Reply, began: float, *, variant: Variant, texts: int, drawn: int, check: bool
    ) -> None:
        """Count one reply to a request.

        Args:
            reply: of the client.
            began: time.perf_counter() from which its latency counts.
            variant: how it was asked for.
            texts: number of texts asked for.
            drawn: their tokens.
            check: parse the vectors as well.
        """
        kind = ""
        if reply.error == TIMED_OUT:
            self.timed_out += 1
            return
        if reply.error:
            kind = reply.error
        elif reply.status in REFUSED:
            self.refused[str(reply.status)] += 1
            self.refusals.append(reply.ended - began)
            return
        elif reply.status != 200:
            kind = f"status {reply.status}"
        else:
            try:
                if check:
                    variant.vectors(reply.body, texts)
                elif reply.body[:1] not in (b"{", b"["):
                    raise WrongAnswer("not JSON")
            except WrongAnswer as error:
                kind = "wrong answer"
                self.example = self.example or f"wrong answer: {error}"
        if kind:
            self.failed[kind] += 1
            shown = reply.body[:200].decode("utf-8", "replace")
            self.example = self.example or f"{kind} {shown}".strip()
            return
        self.answered += 1
        self.within += reply.ended <= self.until
        self.texts += texts
        self.drawn += drawn
        self.seconds.append(reply.ended - began)
        if (tokens := usage(reply.body)) is not None:
            self.tokens += tokens
            self.counted += 1

    @property
    def balanced(self) -> bool:
        """Whether every request that was sent has exactly one outcome."""
        ends = self.answered + self.refused.total() + self.failed.total() + self.timed_out
        return self.sent == ends

    def counts(self) -> dict[str, object]:
        """The counts, for a line of results."""
        return {
            "sent": self.sent,
            "answered": self.answered,
            "refused": self.refused.total(),
            "failed": self.failed.total(),
            "timed_out": self.timed_out,
            "refused_by_status": dict(self.refused),
            "failed_by_kind": dict(self.failed),
            "example": self.example,
            "balanced": self.balanced,
        }

    def figures(self, elapsed: float) -> Figures:
        """Rates over `elapsed` seconds, and percentiles of latency in milliseconds.

        `tokens_per_second` counts the server's `usage`, and is None unless every answer had it.
        """
        full = self.counted == self.answered > 0
        per = 1 / elapsed if elapsed > 0 else 0.0
        return {
            "seconds": elapsed,
            "requests_per_second": self.answered * per,
            "texts_per_second": self.texts * per,
            "tokens_per_second": self.tokens * per if full else None,
            "drawn_tokens_per_second": self.drawn * per,
            **latencies(self.seconds),
        }


def latencies(seconds: Iterable[float]) -> Figures:
    """Percentiles in milliseconds; None without a value."""
    ordered = sorted(seconds)
    return {
        f"p{share}_ms" if share < 100 else "max_ms": None if value is None else value * 1000
        for share, value in ((s, percentile(ordered, s)) for s in (50, 90, 99, 100))
    }


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """The least value that `share` percent of the sorted values do not exceed (nearest rank)."""
    if not ordered:
        return None
    return ordered[max(0, math.ceil(share / 100 * len(ordered)) - 1)]


def slope(times: Sequence[float], values: Sequence[float]) -> float | None:
    """The least-squares slope of values over times; None for less than two distinct times."""
    if len(times) < 2:
        return None
    middle, centre = math.fsum(times) / len(times), math.fsum(values) / len(values)
    spread = math.fsum((t - middle) ** 2 for t in times)
    if not spread:
        return None
    return math.fsum((t - middle) * (v - centre) for t, v in zip(times, values, strict=True)) / (
        spread
    )


def medians(rounds: Sequence[Figures]) -> Figures:
    """The median of each figure over the rounds that have it."""
    return {key: middle(one.get(key) for one in rounds) for key in (rounds[0] if rounds else {})}


def ratios(first: Sequence[Figures], second: Sequence[Figures]) -> Figures:
    """Each figure of `first` over that of `second`: the median over pairs of rounds.

    The two rounds of a pair follow each other, so a change of the machine's load affects both.
    """
    pairs = list(zip(first, second, strict=False))
    return {
        key: middle(divided(a.get(key), b.get(key)) for a, b in pairs)
        for key in (first[0] if first else {})
    }


def middle(values: Iterable[float | None]) -> float | None:
    """The median of the values that are not None; None without one."""
    found = [value for value in values if value is not None]
    return median(found) if found else None


def divided(value: float | None, by: float | None) -> float | None:
    """A quotient; None if a part is missing or the divisor is 0."""
    return value / by if value is not None and by else None
