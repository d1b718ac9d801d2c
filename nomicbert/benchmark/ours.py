"""This package as a peer, from token ids or from strings, and a breakdown of its time."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nomicbert.benchmark.batching import Batching, by_count
from nomicbert.benchmark.peers import AbsentError, Runner, Setting
from nomicbert.benchmark.workloads import Case
from nomicbert.embedder import Embedder
from nomicbert.errors import BackendError
from nomicbert.modeling.packing import pack
from nomicbert.runtime.batch_budget import batch_tokens
from nomicbert.runtime.batches import token_batches
from nomicbert.vectors.embedding_model import EmbeddingModel
from nomicbert.vectors.pooling import Finish
from nomicbert_kernels.tensors import to_device


def load(family: str, dtype: str, setting: Setting) -> Runner:
    """See peers.Peer.load."""
    key = f"ours {dtype}"
    if key not in setting.loaded:
        # only linear layers run in int8; everything else is float32
        try:
            setting.loaded[key] = Embedder.from_pretrained(
                setting.folder,
                device=setting.device,
                dtype="float32" if dtype == "int8" else dtype,
                backend="int8" if dtype == "int8" else "auto",
            )
        except BackendError as error:
            raise AbsentError(str(error)) from error
    embedder = setting.loaded[key]
    return Texts(embedder) if family == "ours-texts" else Ids(embedder)


class Ids:
    """Token ids to vectors, in the same batches as `Embedder.encode`.

    Attributes:
        from_texts: see Runner.
    """

    from_texts = False

    def __init__(self, embedder: Embedder) -> None:
        """Nothing is computed yet."""
        self.embedder = embedder

    def ways(self, case: Case) -> list[Batching]:
        """See Runner: it decides itself."""
        budget = batch_tokens(self.embedder.model)
        parts = tuple(map(tuple, token_batches(case.lengths, budget)))
        return [Batching("own", parts)]

    def vectors(self, case: Case, way: Batching) -> np.ndarray:
        """See Runner."""
        encode = self.embedder.graphs.around(self.embedder.embedding_model)
        return self._run(case, way, lambda texts: encode(texts, Finish()))

    def shares(self, case: Case, way: Batching) -> dict[str, float]:
        """Seconds of one pass: "tokenise", "encode" and "pool", which includes Dense and L2."""
        started = time.perf_counter()
        self.embedder.tokenizer.encode(case.texts, self.embedder.max_seq_length)
        tokenised = time.perf_counter()
        device, watched = self.embedder.device, Watched(self.embedder.model)
        whole: Any = EmbeddingModel(watched, self.embedder.pooling)  # type: ignore[arg-type]
        # without CUDA graphs, because parts of a graph cannot be timed
        self._run(case, way, lambda texts: whole(pack(texts, device)))
        seconds = time.perf_counter() - tokenised
        return {
            "tokenise": tokenised - started,
            "encode": watched.seconds,
            "pool": seconds - watched.seconds,
        }

    @torch.inference_mode()
    def _run(
        self, case: Case, way: Batching, encode: Callable[[list[list[int]]], Tensor]
    ) -> np.ndarray:
        rows = torch.empty(0)
        for part in way.parts:
            found = encode([case.ids[i] for i in part])
            if not rows.numel():
                rows = found.new_empty(len(case.ids), found.shape[1])
            # a plain list would be copied from pageable memory, which blocks the host
            rows.index_copy_(0, to_device(np.array(part), found.device), found)
        vectors: np.ndarray = rows.cpu().numpy()
        return vectors


class Texts:
    """Strings to vectors: `Embedder.encode`.

    Attributes:
        from_texts: see Runner.
    """

    from_texts = True

    def __init__(self, embedder: Embedder) -> None:
        """Nothing is computed yet."""
        self.embedder = embedder

    def ways(self, case: Case) -> list[Batching]:
        """See Runner: it decides itself."""
        whole = by_count(case.lengths, len(case.texts))
        return [Batching("own", whole.parts)]

    def vectors(self, case: Case, way: Batching) -> np.ndarray:
        """See Runner."""
        found: np.ndarray = self.embedder.encode(case.texts, prompt="", show_progress_bar=False)
        return found


class Watched:
    """A model that sums up the time of its encoder."""

    def __init__(self, model: Any) -> None:
        """Everything except `core` is delegated to the model."""
        self.model, self.seconds = model, 0.0

    def __getattr__(self, name: str) -> Any:
        """Delegate to the model."""
        return getattr(self.model, name)

    def core(self, *given: Any) -> Tensor:
        """The model's `core`, timed until the device is done."""
        started = time.perf_counter()
        hidden: Tensor = self.model.core(*given)
        if hidden.is_cuda:
            torch.cuda.synchronize()
        self.seconds += time.perf_counter() - started
        return hidden
