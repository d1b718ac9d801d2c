"""What is compared: sentences in several languages and lengths, and token ids cut from them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LONG = (
    "A lighthouse keeper once wrote down every ship that passed his tower, with the hour, the "
    "weather and the colour of the flag. He did so for thirty-one years, and when he retired he "
    "had filled forty notebooks. Nobody had asked him to. The harbour office kept its own list, "
    "which named the owners and the cargo, and it was thought to be complete. A century later a "
    "historian laid the two side by side and found that the office had missed about one ship in "
    "nine: small boats that carried salt, letters and people without papers, who sailed at dusk "
    "and paid no fees. From the notebooks she could draw their routes, season by season, and show "
    "that a village up the coast had lived on that trade long before anyone admitted it. The "
    "lesson that she drew was modest. A record made for one purpose answers the questions of that "
    "purpose; a record made out of plain attention may answer others, later, that its author "
    "could not have known."
)
TEXTS = (
    "What is the capital of Portugal?",
    "Rain.",
    "The bridge was closed in 1987, after engineers had measured cracks of 3.5 mm in two piers.",
    "def area(r: float) -> float:\n    return math.pi * r**2",
    "Wie lange dauert die Fahrt von Zürich nach Mailand, wenn der Tunnel gesperrt ist?",
    "Le café ouvre à sept heures, sauf le dimanche.",
    "¿Dónde puedo renovar mi pasaporte?",
    "Сколько весит взрослый слон?",
    "昨天晚上我们在图书馆讨论了这篇关于气候变化的论文。",
    "電車が遅れているので、会議には間に合いません。",
    "كم عدد الكواكب في النظام الشمسي؟",
    "मौसम आज बहुत अच्छा है।",
    LONG,
)
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
