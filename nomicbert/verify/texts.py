"""What is compared: sentences in several languages and lengths, and token ids cut from them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nomicbert.text.samples import LONG, TEXTS

__all__ = ["LONG", "TEXTS", "Batch", "cut"]

# Equal neighbours are walked as one block, and a lone token takes a path of its own.
LENGTHS = (17, 17, 32, 3, 1, 17, 96, 64, 128, 7)


@dataclass(frozen=True)
class Batch:
    """Texts as token ids, with a type for each token.

    Attributes:
        ids: of each text.
        types: of each text, as many.
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
    """Texts of mixed lengths, cut from a stream of token ids that begins again at its end.

    Args:
        stream: token ids, not empty.
        types: how many types of tokens the model knows.
        least: tokens at least.
    """
    ids: list[list[int]] = []
    at = tokens = 0
    while tokens < least or len(ids) % len(LENGTHS):
        length = LENGTHS[len(ids) % len(LENGTHS)]
        ids.append([stream[(at + i) % len(stream)] for i in range(length)])
        # an odd step more, so that a second round through a short stream sees other texts
        at, tokens = at + length + 5, tokens + length
    # the second half of each text has another type, as the second of a pair has
    kinds = [[min(types - 1, 2 * i // len(row)) for i in range(len(row))] for row in ids]
    return Batch(ids, kinds)
