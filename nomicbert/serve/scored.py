"""The logits of a request, the scores made of them, and what an answer says about them.

Where in the flow: `service.score` makes it, the dialects write it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from nomicbert.runtime.activation import function_of
from nomicbert.serve.embedded import Computed, headers
from nomicbert.serve.http.answers import Header
from nomicbert.serve.pairs import WantedPairs
from nomicbert.vectors.activations import ACTIVATIONS


@dataclass(frozen=True)
class Scored(Computed):
    """The logits of a request.

    Attributes:
        wanted: what was asked for.
    """

    wanted: WantedPairs

    @property
    def logits(self) -> Tensor:
        """(n, num_labels) fp32."""
        return torch.stack(self.rows)

    @property
    def headers(self) -> list[Header]:
        """Headers of the answer; there are no vectors, so no fingerprint."""
        return headers((), self.truncated)

    def scores(self) -> Tensor:
        """(n,) fp32 for one label, else (n, num_labels): those of `CrossEncoder.predict`."""
        with torch.no_grad():
            found = function_of(self.wanted.model.reranker.activation_fn)(self.logits)
        return found.squeeze(1) if found.dim() > 1 and found.shape[1] == 1 else found


def probabilities(logits: Tensor) -> Tensor:
    """(n, num_labels) from 0 to 1: softmax, or sigmoid for one label."""
    return ACTIVATIONS["Sigmoid" if logits.shape[1] == 1 else "Softmax"](logits)


def ranking(scores: Tensor) -> list[int]:
    """Indices of (n,) scores, the best first; of equal ones the first, as `CrossEncoder.rank`."""
    order: list[int] = torch.argsort(scores, descending=True, stable=True).tolist()
    return order
