"""The rows of a request and what an answer says about them.

Where in the flow: `service.embed` makes it, the dialects write it.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from nomicbert.serve.http.answers import Header
from nomicbert.serve.http.exchange import Exchange
from nomicbert.serve.http.problems import Problem, Reason
from nomicbert.serve.tokens import Tokenised, Wanted
from nomicbert.vectors.fingerprint import matches


@dataclass(frozen=True)
class Computed:
    """The rows of a request.

    Attributes:
        rows: per text (dim,) fp32, or (tokens, hidden_size); per pair (num_labels,).
        tokenised: lengths and cuts.
        tokenise_seconds: time to tokenise the texts.
    """

    rows: list[Tensor]
    tokenised: Tokenised
    tokenise_seconds: float

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


@dataclass(frozen=True)
class Embedded(Computed):
    """The vectors of a request.

    Attributes:
        wanted: what was asked for.
        fingerprint: of the vectors.
    """

    wanted: Wanted
    fingerprint: str

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
        return headers([self.fingerprint], self.truncated)


def headers(fingerprints: Iterable[str], truncated: int = 0) -> list[Header]:
    """Headers of an answer: the fingerprint, if all of its vectors have the same, and the cuts."""
    found = [(b"x-embedding-fingerprint", each.encode()) for each in set(fingerprints)]
    if len(found) > 1:
        found = []
    if truncated:
        found.append((b"x-truncated-texts", str(truncated).encode()))
    return found


def check_fingerprint(exchange: Exchange, found: str) -> None:
    """Refuse a request that expects vectors of another space.

    Raises: Problem.
    """
    expected = exchange.headers.get("x-expect-fingerprint")
    if expected is not None and not matches(expected, found):
        raise Problem(
            Reason.FINGERPRINT,
            f"the vectors of this request have the fingerprint {found}, not {expected[:200]!r}: "
            "they do not belong in that index",
        )
