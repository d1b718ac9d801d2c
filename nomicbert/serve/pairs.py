"""What a request wants scored -> a Job: pairs of texts, and the treatment of long ones.

Where in the flow: as `tokens`, which has texts to be embedded.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from nomicbert.errors import TextError
from nomicbert.runtime.inputs import check_text
from nomicbert.serve.http.problems import Problem, Reason
from nomicbert.serve.scorers import ServedScorer
from nomicbert.serve.tokens import CHARACTERS_PER_TOKEN, COUNTED, Tokenised
from nomicbert.text.tokenizer import Pair

PairPolicy = Literal["error", "end"]

# Bytes of a score in an answer, about, with its index or the quotes of its label.
SCORE_BYTES = 60
# Tokens of a pair that is counted whole.
ANY_LENGTH = 1 << 30


@dataclass(frozen=True, kw_only=True)
class WantedPairs:
    """What a request asks for, whatever its dialect.

    Attributes:
        model: the model.
        inputs: pairs of texts; a classifier also takes single texts.
        field: name of the list in the body whose items the inputs stand for, for errors.
        on_long: treatment of pairs of more than `max_length` tokens; "end" takes tokens from the
            longer text.
        max_length: tokens per pair.
        max_second: tokens of the second text, whose rest is cut whatever `on_long` says; None for
            any.
        echoed: characters of the answer that are texts of the request.
    """

    model: ServedScorer
    inputs: Sequence[str | Pair]
    field: str
    on_long: PairPolicy
    max_length: int
    max_second: int | None = None
    echoed: int = 0

    def estimate(self) -> int:
        """About how many tokens will be computed; no more than twice what is likely."""
        frame = self.model.shortest + len(self.model.default_prompt) // CHARACTERS_PER_TOKEN
        tokens = (frame + size // CHARACTERS_PER_TOKEN for size in map(characters_of, self.inputs))
        return sum(min(count, self.max_length) for count in tokens)

    def answer_bytes(self) -> float:
        """About the size of the answer."""
        labels = self.model.labels
        scores = len(labels) * SCORE_BYTES + sum(map(len, labels))
        return len(self.inputs) * scores + self.echoed

    def characters(self) -> int:
        """Characters that are tokenised; each input counts a few more."""
        return sum(map(characters_of, self.inputs)) + 16 * len(self.inputs)


def tokenise_pairs(wanted: WantedPairs) -> Tokenised:
    """Make the job of a request.

    Raises: Problem: a text is not valid Unicode, or a pair too long under "error".
    """
    checked: set[str] = set()  # the query is in every pair
    for index, item in enumerate(wanted.inputs):
        try:
            for text in (item,) if isinstance(item, str) else item:
                if text not in checked:
                    check_text(index, text)
                    checked.add(text)
        except TextError as error:
            raise Problem(
                Reason.INVALID, f"the text of {wanted.field}[{index}] {error.problem}", wanted.field
            ) from error
    model, limit = wanted.model, wanted.max_length
    job, cut = model.job(wanted.inputs, limit, wanted.max_second)
    if wanted.on_long == "error":
        for index in cut:
            if len(job.pieces[index]) < limit:
                continue  # only `max_second` has cut it
            tokens = _count(wanted, index)
            if tokens is None or tokens > limit:
                given = "more" if tokens is None else str(tokens)
                raise Problem(
                    Reason.TOO_LONG,
                    f"`{wanted.field}` must have at most {limit} tokens. Given: {given} in "
                    f"{'text' if isinstance(wanted.inputs[index], str) else 'pair'} {index}",
                    wanted.field,
                )
    return Tokenised(job, list(map(len, job.pieces)), cut)


def _count(wanted: WantedPairs, index: int) -> int | None:
    """Tokens of a whole input, but for those beyond `max_second`; None for many characters."""
    item = wanted.inputs[index]
    if characters_of(item) > COUNTED:
        return None
    job, _ = wanted.model.job([item], ANY_LENGTH, wanted.max_second)
    return len(job.pieces[0])


def characters_of(item: str | Pair) -> int:
    """Of a text, or of both of a pair."""
    return len(item) if isinstance(item, str) else len(item[0]) + len(item[1])
