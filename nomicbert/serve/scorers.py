"""The records of loaded rerankers and classifiers: pairs of texts -> logits.

Where in the flow: as `served`, which has embedding models.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nomicbert.cross_encoder import CrossEncoder
from nomicbert.errors import TokenizerError
from nomicbert.modeling.model import NomicBert
from nomicbert.runtime.prompt_tokens import prompt_tokens
from nomicbert.runtime.reranker_settings import CrossEncoderSettings
from nomicbert.serve.engine.jobs import Group, Job
from nomicbert.serve.engine.runs import Runs
from nomicbert.serve.served import SELF_TEST, ServedModel
from nomicbert.serve.settings import ServeSettings
from nomicbert.text.tokenizer import Pair

SELF_TEST_PAIR = ("What does the fox jump over?", SELF_TEST)


@dataclass(frozen=True, kw_only=True)
class ServedScorer(ServedModel):
    """Pairs of texts -> logits.

    Attributes:
        reranker: the facade.
        shortest: the smallest limit of tokens per pair.
    """

    task = "a classifier"
    kind: ClassVar[str]
    reranker: CrossEncoderSettings
    shortest: int

    @property
    def facade(self) -> CrossEncoderSettings:
        """See ServedModel."""
        return self.reranker

    @property
    def encoder(self) -> NomicBert:
        """See ServedModel."""
        return self.reranker.model.encoder

    @property
    def space(self) -> str:
        """See ServedModel."""
        return ""

    @property
    def labels(self) -> tuple[str, ...]:
        """Name of each column of the logits."""
        return self.reranker.model.labels.names

    def prompt_text(self, name: str) -> str:
        """See ServedModel."""
        prompts = self.reranker.prompts
        if name not in prompts:
            known = ", ".join(map(repr, prompts)) or "none"
            raise ValueError(f"unknown prompt_name {name!r}; this checkpoint has: {known}")
        return prompts[name]

    def self_test_job(self) -> Job:
        """See ServedModel."""
        return self.job([SELF_TEST_PAIR], self.max_length)[0]

    def job(
        self, inputs: Sequence[str | Pair], max_length: int, max_second: int | None = None
    ) -> tuple[Job, list[int]]:
        """Tokenise texts and pairs, which must be valid Unicode.

        Args:
            inputs: pairs, and single texts, which a classifier may have been trained on.
            max_length: tokens per pair; `shortest` or more.
            max_second: tokens of the second text of a pair, or None for any.

        Returns: the job, and the indices of the inputs that were cut.
        """
        prompt, tokenizer = self.default_prompt, self.tokenizer
        pieces: list[list[int]] = [[]] * len(inputs)
        splits = [0] * len(inputs)
        cut: list[int] = []
        pairs = {i: item for i, item in enumerate(inputs) if not isinstance(item, str)}
        if pairs:
            # one text with its prompt for all pairs that have it first: it may be long
            firsts = {first: prompt + first for first, _ in pairs.values()}
            prompted = [(firsts[first], second) for first, second in pairs.values()]
            found, types, found_cut = tokenizer.encode_pairs(prompted, max_length, max_second)
            for i, ids, kinds in zip(pairs, found, types, strict=True):
                pieces[i], splits[i] = ids, len(ids) - sum(kinds)
            numbers = [*pairs]
            cut += [numbers[i] for i in found_cut]
        texts = {i: item for i, item in enumerate(inputs) if isinstance(item, str)}
        if texts:
            whole = [prompt + text for text in texts.values()]
            found, found_cut = tokenizer.encode(whole, max_length)
            for i, ids in zip(texts, found, strict=True):
                pieces[i], splits[i] = ids, len(ids)
            numbers = [*texts]
            cut += [numbers[i] for i in found_cut]
        group = Group(self.index, prompt_tokens(tokenizer, prompt, max_length))
        return Job(group, pieces, None, splits=splits), sorted(cut)


@dataclass(frozen=True, kw_only=True)
class ServedReranker(ServedScorer):
    """A scorer with one label."""

    task = "a re-ranker"
    kind = "reranker"


@dataclass(frozen=True, kw_only=True)
class ServedClassifier(ServedScorer):
    """A scorer with several labels."""

    kind = "classifier"


def serve_reranker(
    index: int, name: str, reranker: CrossEncoder, settings: ServeSettings
) -> ServedReranker | ServedClassifier:
    """The record of a loaded reranker.

    Raises: as `apply_pair_settings`.
    """
    shortest = apply_pair_settings(name, reranker, settings)
    logits = reranker.predict(
        SELF_TEST_PAIR, activation_fn=torch.nn.Identity(), convert_to_tensor=True
    )
    assert isinstance(logits, Tensor)
    runs = Runs.of(reranker.model.encoder, repr(reranker))
    return scorer_of(index, name, reranker, shortest, runs, logits.reshape(-1).cpu())


def apply_pair_settings(name: str, reranker: CrossEncoderSettings, settings: ServeSettings) -> int:
    """Set --max-length; return the smallest limit of tokens per pair.

    Raises: ValueError: --max-length does not fit the checkpoint. TokenizerError: token types that
        are not 0 and then 1.
    """
    if settings.max_length is not None:
        reranker.max_seq_length = settings.max_length
    encode = reranker.tokenizer.encode_pairs
    (special,), (kinds,), _ = encode([("", "")], reranker.max_seq_length)
    (_,), (more,), _ = encode([("a", "a")], len(special) + 2)
    if sorted(kinds) != kinds or sorted(more) != more:
        raise TokenizerError(f"{name} gives a pair the token types {more}, not 0 and then 1")
    return len(special) + 1


def scorer_of(
    index: int,
    name: str,
    reranker: CrossEncoderSettings,
    shortest: int,
    runs: Runs,
    self_test: Tensor,
) -> ServedReranker | ServedClassifier:
    """The record of a scorer; see the attributes of `ServedScorer`."""
    kind = ServedReranker if len(reranker.model.labels.names) == 1 else ServedClassifier
    return kind(
        index=index,
        name=name,
        runs=runs,
        max_length=reranker.max_seq_length,
        default_prompt=reranker.prompts.get(reranker.default_prompt_name or "", ""),
        self_test=self_test,
        reranker=reranker,
        shortest=shortest,
    )
