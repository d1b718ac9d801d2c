"""Pairs of texts -> logits: the Task that a stream runs for `CrossEncoder`."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nomicbert.modeling.heads import NomicBertForSequenceClassification
from nomicbert.modeling.packing import pack
from nomicbert.modeling.plain_layers import refuse_hooks
from nomicbert.runtime.batch_budget import batch_tokens
from nomicbert.runtime.batch_loop import BatchLoop
from nomicbert.runtime.batches import windows
from nomicbert.runtime.inputs import checked_pairs
from nomicbert.runtime.prompt_tokens import prompt_tokens
from nomicbert.runtime.stream import Tokenised
from nomicbert.text.tokenizer import CHARACTERS_PER_TOKEN, Pair, Tokenizer
from nomicbert_kernels.tensors import to_device


class Pairs:
    """A Task: see `stream`. Rows are logits (n, num_labels) fp32."""

    inputs = "pairs"
    doing = "Scoring"

    def __init__(
        self,
        model: NomicBertForSequenceClassification,
        tokenizer: Tokenizer,
        prompt: str,
        max_length: int,
    ) -> None:
        """`prompt`: prefix of the first text of a pair; `max_length`: limit of tokens per pair."""
        self.model = model
        self.tokenizer = tokenizer
        self.prompt = prompt
        self.max_length = max_length

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self.model.device

    def batch_tokens(self) -> int:
        """See Task."""
        return batch_tokens(self.model.encoder)

    def read(self, inputs: Iterable[Any]) -> Iterator[Pair]:
        """See Task."""
        return checked_pairs(inputs)

    def windows(self, inputs: Iterable[Pair]) -> Iterator[list[Pair]]:
        """See Task."""
        return windows(inputs, lambda pair: tuple(map(len, pair)), self._useful)

    def characters(self, inputs: list[Pair]) -> list[int]:
        """See Task."""
        return [sum(min(len(text), self._useful) for text in pair) for pair in inputs]

    @property
    def _useful(self) -> int:
        return self.max_length * CHARACTERS_PER_TOKEN

    def tokenise(self, window: list[Pair]) -> Tokenised:
        """Token ids of each pair, and a token type for each of them."""
        if self.prompt:
            window = [(self.prompt + first, second) for first, second in window]
        ids, types, cut = self.tokenizer.encode_pairs(window, self.max_length)
        return Tokenised(list(map(len, ids)), cut, (ids, types))

    @cached_property
    def _prompt_tokens(self) -> int:
        """Leading tokens of each pair that are the prompt's; a classifier has no use for them."""
        return prompt_tokens(self.tokenizer, self.prompt, self.max_length)

    @torch.inference_mode()
    def encode(self, window: Tokenised, first: int, loop: BatchLoop) -> Tensor:
        """See Task."""
        refuse_hooks(self.model)
        ids, types = window.ids

        def logits(indices: list[int]) -> Tensor:
            kinds = np.array([kind for i in indices for kind in types[i]], np.int64)
            batch = replace(
                pack([ids[i] for i in indices], self.device),
                token_type_ids=to_device(kinds, self.device),
                prompt_tokens=self._prompt_tokens,
            )
            return self.model.packed_logits(batch).float()

        return loop.rows(window.lengths, logits)
