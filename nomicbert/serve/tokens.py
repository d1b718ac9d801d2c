"""What a request wants -> a Job: prompt, tokenising, and the treatment of long texts.

Where in the flow: after a dialect has read the body, on a thread of the tokenizer pool, or on the
event loop for short requests.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from nomicbert.errors import TextError
from nomicbert.runtime.hosted import first_longer
from nomicbert.runtime.inputs import check_text
from nomicbert.runtime.prompt_tokens import prompt_tokens
from nomicbert.serve.engine.jobs import Group, Job, Join, TokenMeans, WindowMeans
from nomicbert.serve.http.problems import Problem, Reason
from nomicbert.serve.served import ServedEmbedder
from nomicbert.serve.settings import OnLong
from nomicbert.vectors.pooling import Finish
from nomicbert.vectors.windows import OVERLAP

# First estimate of a text's tokens, for admission before tokenising; corrected afterwards.
CHARACTERS_PER_TOKEN = 4
# Characters of a text that is counted for the message that it is too long: a second per MB.
COUNTED = 100_000


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a request asks for, whatever its dialect.

    Attributes:
        model: the model.
        inputs: texts, or lists of token ids with the model's special tokens.
        field: name of the inputs in the body, for errors.
        prompt: text put before every text.
        finish: steps after pooling.
        on_long: treatment of texts of more than `max_length` tokens.
        max_length: tokens per text, or per window of a text.
        most_tokens: with "mean", tokens of a whole text, without prompt and special tokens.
        hidden: hidden states of every token instead of vectors.
        report: tell the lengths of each text.
        value_bytes: bytes of a value in the answer, about.
        echo: the answer holds the texts.
        first: index of the first text in its request, for errors.
    """

    model: ServedEmbedder
    inputs: Sequence[str] | Sequence[list[int]]
    field: str
    prompt: str
    finish: Finish
    on_long: OnLong
    max_length: int
    most_tokens: int | None = None
    hidden: bool = False
    report: bool = False
    value_bytes: float = 13.0
    echo: bool = False
    first: int = 0

    def estimate(self) -> int:
        """About how many tokens will be computed; no more than twice what is likely."""
        frame = self.model.tokenizer.shortest - 1 + len(self.prompt) // CHARACTERS_PER_TOKEN
        cuts = self.on_long in ("end", "error") and not self.report  # which counts the rest
        total = 0
        for item in self.inputs:
            tokens = len(item) if isinstance(item, list) else len(item) // CHARACTERS_PER_TOKEN
            tokens += frame + 1
            total += min(tokens, self.max_length) if cuts else tokens
        return total

    def answer_bytes(self) -> float:
        """About the size of the answer."""
        embedder, finish = self.model.embedder, self.finish
        if self.hidden:  # a row per token, of which a text may have as many as characters
            frame = self.model.tokenizer.shortest + len(self.prompt)
            rows = sum(min(len(item) + frame, self.max_length) for item in self.inputs)
            return rows * embedder.model.config.hidden_size * self.value_bytes
        width = finish.matryoshka_dim or finish.truncate_dim or self.model.width
        texts = sum(map(len, self.inputs)) if self.echo else 0
        return len(self.inputs) * width * self.value_bytes + texts

    def characters(self) -> int:
        """Characters, or ids, that are tokenised; each input counts a few more."""
        return sum(map(len, self.inputs)) + len(self.inputs) * (len(self.prompt) + 16)


@dataclass(frozen=True)
class Tokenised:
    """The work of a request.

    Attributes:
        job: for the engine.
        lengths: tokens computed per text, prompt and special tokens included.
        cut: indices of the texts that are longer than the limit.
        whole: with `report`, the tokens of each whole text.
        doubled: texts that begin with a prompt of the checkpoint and get another.
    """

    job: Job
    lengths: list[int]
    cut: list[int]
    whole: list[int] | None = None
    doubled: int = 0


def tokenise(wanted: Wanted) -> Tokenised:
    """Make the job of a request.

    Raises: Problem: a text is not valid Unicode, or too long under "error"; ids of another
        tokenizer.
    """
    texts, ids = _split(wanted.inputs)
    if ids:
        return _of_ids(wanted, ids)
    try:
        for index, text in enumerate(texts):
            check_text(index, text)
        return (
            _windows(wanted, texts)
            if wanted.on_long in ("chunk", "mean")
            else _plain(wanted, texts)
        )
    except TextError as error:
        raise Problem(
            Reason.INVALID,
            f"{wanted.field}[{wanted.first + error.index}] {error.problem}",
            wanted.field,
        ) from error


def _plain(wanted: Wanted, texts: list[str]) -> Tokenised:
    tokenizer = wanted.model.tokenizer
    whole_texts = [wanted.prompt + text for text in texts]
    ids, cut = tokenizer.encode(whole_texts, wanted.max_length)
    if cut and wanted.on_long == "error":
        text = whole_texts[cut[0]]
        count = tokenizer.count([text])[0] if len(text) <= COUNTED else None
        raise _too_long(wanted, cut[0], count)
    lengths = list(map(len, ids))
    whole = None
    if wanted.report:
        counts = iter(tokenizer.count([whole_texts[i] for i in cut]))
        long = set(cut)
        whole = [next(counts) if i in long else length for i, length in enumerate(lengths)]
    finish = None if wanted.hidden else wanted.finish
    job = Job(_group(wanted), ids, finish)
    return Tokenised(job, lengths, cut, whole, _doubled(wanted, texts))


def _windows(wanted: Wanted, texts: list[str]) -> Tokenised:
    """A text longer than the limit becomes several windows."""
    tokenizer, length = wanted.model.tokenizer, wanted.max_length
    most = wanted.most_tokens
    if most is not None and (found := first_longer(tokenizer, texts, most)) is not None:
        raise _too_long(wanted, *found, most)
    overlap = OVERLAP if wanted.on_long == "mean" else 0
    try:
        parts = tokenizer.encode_windows(texts, wanted.prompt, length, overlap)
    except ValueError as error:  # no room for windows, which short texts do not need
        ids, cut = tokenizer.encode([wanted.prompt + text for text in texts], length)
        if cut:
            raise Problem(Reason.INVALID, str(error)) from error
        parts = [[own] for own in ids]
    counts = tuple(map(len, parts))
    pieces = [ids for part in parts for ids in part]
    lengths = [sum(map(len, part)) for part in parts]
    group, finish = _group(wanted), wanted.finish
    join: Join
    own: Finish | None
    if wanted.on_long == "mean":
        if finish.unnormalized:
            raise Problem(
                Reason.INVALID,
                "on_long 'mean' gives unit vectors, but this request asks for others: leave out "
                "`normalize` false, or in ollama's protocol use /api/embed",
                "on_long",
            )
        own = Finish(finish.matryoshka_dim, finish.truncate_dim, normalize=True)
        join = WindowMeans(counts)
    else:
        if wanted.model.embedder.pooling.modes != ("mean",):
            raise Problem(
                Reason.INVALID,
                "on_long 'chunk' adds up tokens, which only mean pooling does: this model pools by "
                f"{wanted.model.embedder.pooling.mode}",
                "on_long",
            )
        own = None
        join = TokenMeans(counts, tuple(map(len, pieces)), group.skipped, finish)
    whole = tokenizer.count([wanted.prompt + text for text in texts]) if wanted.report else None
    if max(counts, default=1) == 1:  # as most often: each text is one piece, as under "end"
        job = Job(group, pieces, own or finish)
    else:
        job = Job(group, pieces, own, join)
    return Tokenised(job, lengths, [], whole, _doubled(wanted, texts))


def _of_ids(wanted: Wanted, ids: list[list[int]]) -> Tokenised:
    """Token ids are taken only if they are surely this model's."""
    tokenizer = wanted.model.tokenizer
    most = wanted.model.embedder.model.config.vocab_size
    before, after = tokenizer.prefix, tokenizer.suffix
    for index, given in enumerate(ids):
        framed = given[: len(before)] == before and given[len(given) - len(after) :] == after
        if not (framed and len(given) >= len(before) + len(after)):
            raise Problem(
                Reason.INVALID,
                f"{wanted.field}[{index}] is a list of token ids without this model's special "
                f"tokens {before} ... {after}, so they may be another tokenizer's: send text "
                "(langchain-openai: check_embedding_ctx_length=False)",
                wanted.field,
            )
        if not all(0 <= token < most for token in given):
            raise Problem(
                Reason.INVALID,
                f"{wanted.field}[{index}] has token ids outside of 0 to {most - 1}: send text",
                wanted.field,
            )
        if len(given) > wanted.max_length:
            raise _too_long(wanted, index, len(given))
    if wanted.prompt:
        raise Problem(
            Reason.INVALID, "a prompt cannot be put before token ids: send text", wanted.field
        )
    lengths = list(map(len, ids))
    job = Job(_group(wanted), ids, None if wanted.hidden else wanted.finish)
    return Tokenised(job, lengths, [], list(lengths) if wanted.report else None)


def _split(
    inputs: Sequence[str] | Sequence[list[int]],
) -> tuple[list[str], list[list[int]]]:
    texts = [item for item in inputs if isinstance(item, str)]
    return texts, [item for item in inputs if isinstance(item, list)]


def _group(wanted: Wanted) -> Group:
    model = wanted.model
    skipped = 0
    if not (model.embedder.pooling.include_prompt or wanted.hidden):
        skipped = prompt_tokens(model.tokenizer, wanted.prompt, wanted.max_length)
    return Group(model.index, skipped, wanted.hidden)


def _too_long(wanted: Wanted, index: int, tokens: int | None, most: int | None = None) -> Problem:
    most = wanted.max_length if most is None else most
    given = "more" if tokens is None else str(tokens)
    return Problem(
        Reason.TOO_LONG,
        f"`{wanted.field}` must have at most {most} tokens. Given: {given} in text "
        f"{wanted.first + index}",
        wanted.field,
    )


def _doubled(wanted: Wanted, texts: list[str]) -> int:
    if not wanted.prompt:
        return 0
    known = tuple(prompt for prompt in wanted.model.embedder.prompts.values() if prompt)
    return sum(text.startswith(known) for text in texts) if known else 0
