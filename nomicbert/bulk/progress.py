"""Progress of a bulk job: tokens per second, and the time left by the bytes of input left.

Where in the flow: a stream reports the tokens of each batch, the output's loop reports the rows
whose vectors have come. On a terminal that is a bar, elsewhere a line from time to time.
"""

import json
import logging
import time
from collections.abc import Callable
from typing import Literal

from nomicbert.runtime.progress import DELAY, Progress, is_watched, new_bar

# Seconds between two lines.
PERIOD = 30.0

Form = Literal["bar", "lines", "json", "none"]

logger = logging.getLogger(__name__)


class BulkProgress(Progress):
    """Counts tokens, rows and bytes of input.

    Attributes:
        tokens: computed so far.
        rows: whose vectors have come.
    """

    def __init__(
        self,
        form: Form | None = None,
        total: int = 0,
        left: int | None = None,
        say: Callable[[str], None] = logger.info,
    ) -> None:
        """Nothing is shown before there is something to report.

        Args:
            form: None: a bar on a terminal, elsewhere lines.
            total: bytes of the inputs; 0 if unknown.
            left: bytes of the rows to come, without those of an earlier run; None: all.
            say: receives each line.
        """
        super().__init__(False)
        self.form: Form = form or ("bar" if is_watched() else "lines")
        self.tokens = self.rows = 0
        self._say = say
        self._total = total
        self._left = total if left is None else left
        self._bytes = self._tokens_of_rows = 0
        self._started = self._said = time.monotonic()
        if self.form == "bar":
            delay = DELAY if form is None else 0
            self._bar = new_bar(desc=self._title(), unit=" tokens", unit_scale=True, delay=delay)

    def read(self, lengths: list[int]) -> None:
        """See Progress. The total comes from bytes, not from the number of inputs."""

    def done(self, tokens: int) -> None:
        """See Progress."""
        self.tokens += tokens
        super().done(tokens)
        self._perhaps_say()

    def passed(self, rows: int, size: int, tokens: int) -> None:
        """Report rows whose vectors have come.

        Args:
            rows: their number.
            size: the bytes of input that they took, and blank or refused rows before them.
            tokens: of all of them.
        """
        self.rows += rows
        self._bytes += size
        self._tokens_of_rows += tokens
        if self._bar is not None:
            self._bar.set_description(self._title(), refresh=False)
            if self._bytes and self._total:
                self._bar.total = round(self._tokens_of_rows * self._left / self._bytes)
        self._perhaps_say()

    @property
    def fraction(self) -> float | None:
        """Share of all bytes that has been embedded, in this run or earlier; None if unknown."""
        if not self._total:
            return None
        return min(1.0, (self._total - self._left + self._bytes) / self._total)

    @property
    def seconds_left(self) -> float | None:
        """Estimated from the rate of this run; None before its first rows."""
        if not self._total or not self._bytes or not self.tokens:
            return None
        seconds = time.monotonic() - self._started
        tokens = self._tokens_of_rows * self._left / self._bytes
        return max(0.0, (tokens - self.tokens) * seconds / self.tokens)

    def _title(self) -> str:
        fraction = self.fraction
        return f"{self.rows:,} rows" + ("" if fraction is None else f" ({fraction:.0%} of input)")

    def _perhaps_say(self) -> None:
        now = time.monotonic()
        if self.form in ("lines", "json") and now - self._said >= PERIOD:
            self._said = now
            self._say(self._json() if self.form == "json" else self._line())

    def _line(self) -> str:
        left = self.seconds_left
        after = "" if left is None else f", {duration(left)} left"
        return f"{self._title()}, {self.tokens:,} tokens, {self._rate():,.0f} tokens/s{after}"

    def _json(self) -> str:
        found = {
            "event": "progress",
            "rows": self.rows,
            "tokens": self.tokens,
            "tokens_per_second": round(self._rate(), 1),
            "fraction": self.fraction,
            "seconds_left": self.seconds_left,
        }
        return json.dumps(found)

    def _rate(self) -> float:
        return self.tokens / max(time.monotonic() - self._started, 1e-9)


def duration(seconds: float) -> str:
    """Seconds as text, in its two largest units."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
