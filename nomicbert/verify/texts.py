"""The inputs of a comparison: sentences in several languages and lengths, and their token ids."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nomicbert.text.samples import LONG, TEXTS

__all__ = ["LONG", "TEXTS", "Batch", "cut"]

# Covers special code paths: equal neighbours, which are processed together, and a single token.
LENGTHS = (17, 17, 32, 3, 1, 17, 96, 64, 128, 7)


@dataclass(frozen=True)
class Batch:
    """Texts as token ids and token types.

    Attributes:
        ids: token ids of each text.
        types: token types of each text.
    """

    ids: list[list[int]]
    types: list[list[int]]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each text."""
        return [len(row) for row in self.ids]

    def padded(self, device: torch.device) -> dict[str, Tensor]:
        """Arguments of a forward pass, each (texts, longest) int64, padded on the right."""
        longest = max(self.lengths)
        mask = [[1] * n for n in self.lengths]

        def fill(rows: list[list[int]]) -> Tensor:
            return torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=device)

        return {
            "input_ids": fill(self.ids),
            "attention_mask": fill(mask),
            "token_type_ids": fill(self.types),
        }


def cut(stream: Sequence[int], types: int, least: int) -> Batch:
    """Cut texts of mixed lengths from a stream of token ids, which is repeated as needed.

    Args:
        stream: token ids, not empty.
        types: number of token types of the model.
        least: minimum number of tokens.
    """
    ids: list[list[int]] = []
    at = tokens = 0
    while tokens < least or len(ids) % len(LENGTHS):
        length = LENGTHS[len(ids) % len(LENGTHS)]
        ids.append([stream[(at + i) % len(stream)] for i in range(length)])
        # an additional odd step, so that a second pass through a short stream gives other texts
        at, tokens = at + length + 5, tokens + length
    # the second half of each text has the second type, like the second text of a pair
    kinds = [[min(types - 1, 2 * i // len(row)) for i in range(len(row))] for row in ids]
    return Batch(ids, kinds)
