"""Pairs of texts -> logits: what a stream does for `CrossEncoder`."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nomicbert.modeling.heads import NomicBertForSequenceClassification
from nomicbert.modeling.packing import pack
from nomicbert.runtime.batch_budget import batch_tokens
from nomicbert.runtime.batch_loop import BatchLoop
from nomicbert.runtime.batches import check_text, windows
from nomicbert.runtime.stream import Tokenised
from nomicbert.text.tokenizer import LETTERS_A_TOKEN, Pair, Tokenizer
from nomicbert_kernels.tensors import to_device


class Pairs:
    """A Task: see `stream`. Rows are logits (n, num_labels) fp32."""

    inputs = "pairs"
    doing = "Scoring"

    def __init__(
        self, model: NomicBertForSequenceClassification, tokenizer: Tokenizer, max_length: int
    ) -> None:
        """The parts of a reranker, and how many tokens a pair may have."""
        self.model = model
        self.tokenizer = tokenizer
        self.max_length = max_length

    @property
    def device(self) -> torch.device:
        """Where the model is."""
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

    def letters(self, inputs: list[Pair]) -> list[int]:
        """See Task."""
        return [sum(min(len(text), self._useful) for text in pair) for pair in inputs]

    @property
    def _useful(self) -> int:
        return self.max_length * LETTERS_A_TOKEN

    def tokenise(self, window: list[Pair]) -> Tokenised:
        """Each pair as token ids, and as many that say which text a token is of."""
        ids, types, cut = self.tokenizer.encode_pairs(window, self.max_length)
        return Tokenised(list(map(len, ids)), cut, (ids, types))

    @torch.inference_mode()
    def encode(self, window: Tokenised, first: int, loop: BatchLoop) -> Tensor:
        """See Task."""
        ids, types = window.ids

        def logits(indices: list[int]) -> Tensor:
            kinds = np.array([kind for i in indices for kind in types[i]], np.int64)
            batch = replace(
                pack([ids[i] for i in indices], self.device),
                token_type_ids=to_device(kinds, self.device),
            )
            return self.model.packed_logits(batch).float()

        return loop.rows(window.lengths, logits)


def checked_pairs(inputs: Iterable[Any]) -> Iterator[Pair]:
    """The inputs as pairs; an error names the first that is none.

    Raises: TypeError: no pair of str. TextError: no valid Unicode.
    """
    for index, pair in enumerate(inputs):
        listed = list(pair) if isinstance(pair, list | tuple | np.ndarray) else []
        if len(listed) != 2 or not all(isinstance(text, str) for text in listed):
            raise TypeError(f"input {index} must be a pair of str, not {pair!r:.80}")
        for text in listed:
            check_text(index, text)
        yield str(listed[0]), str(listed[1])
