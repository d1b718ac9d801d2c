"""transformers, eager and compiled, and sentence-transformers."""

from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from nomicbert.benchmark.batching import COUNTS, Batching, by_count
from nomicbert.benchmark.peers import AbsentError, Runner, Setting
from nomicbert.benchmark.sentence import TORCH_DTYPES, PaddedRunner, known, load_sentence
from nomicbert.benchmark.workloads import Case
from nomicbert.verify.references import quiet
from nomicbert.verify.truth import sentence_transformer

NAIVE_BATCH = 32


def load(family: str, dtype: str, setting: Setting) -> Runner:
    """See peers.Peer.load."""
    if family == "sentence-transformers":
        return FromTexts(setting, dtype)
    count = NAIVE_BATCH if family == "transformers-32" else None
    return Native(setting, dtype, count, compiled=family == "transformers-compile")


class Native(PaddedRunner):
    """transformers' own forward pass."""

    def __init__(self, setting: Setting, dtype: str, count: int | None, compiled: bool) -> None:
        """`count` fixes the texts per batch."""
        super().__init__(setting, count)
        self.model: Any = load_sentence(setting, dtype)
        if compiled:
            self.model = torch.compile(self.model, dynamic=True)

    def batch(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """See PaddedRunner."""
        with torch.inference_mode():
            tensors = (torch.from_numpy(array).to(self.device) for array in (ids, mask))
            found: np.ndarray = self.model(*tensors).cpu().numpy()
        return found


class FromTexts:
    """sentence-transformers, strings to vectors; it sorts by length itself.

    Attributes:
        from_texts: see Runner.
    """

    from_texts = True

    def __init__(self, setting: Setting, dtype: str) -> None:
        """Load it.

        Raises: AbsentError: it is not installed, or does not read the checkpoint correctly.
        """
        if find_spec("sentence_transformers") is None:
            raise AbsentError("sentence-transformers is not installed")
        if not (setting.folder / "modules.json").is_file():
            raise AbsentError("the checkpoint has no modules.json")
        known(setting)
        self.counts = COUNTS[setting.device.type]
        self.model = sentence_transformer(setting.folder, setting.device, TORCH_DTYPES[dtype])

    def ways(self, case: Case) -> list[Batching]:
        """See Runner."""
        counts = [count for count in self.counts if count < 2 * len(case.texts)]
        return [by_count(case.lengths, count) for count in counts]

    def vectors(self, case: Case, way: Batching) -> np.ndarray:
        """See Runner."""
        with quiet():
            found: np.ndarray = self.model.encode(
                case.texts, prompt="", batch_size=way.count, show_progress_bar=False
            )
        return found.astype(np.float32, copy=False)
