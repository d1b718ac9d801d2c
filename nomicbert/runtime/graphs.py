"""CUDA graphs: the launches of a small batch, recorded once and replayed as one.

A GPU is done with a few tokens before the host has launched the ninety kernels that they pass. So
the launches for a number of tokens, a bucket, are recorded and replayed for every batch that fits.

Switch: NOMICBERT_GRAPHS=0. A bucket is recorded when its first batch comes, so that a call which is
repeated takes the same path each time. Recorded graphs read the parameters where they lie, and
share the library's workspace: when one of them cannot stay, all go.
"""

import functools
import logging
import math
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from nomicbert.config import EncoderConfig
from nomicbert.modeling.model import NomicBert
from nomicbert.runtime.graph_bucket import Bucket, Key, Record, Work
from nomicbert.runtime.parameter_snapshot import ParameterSnapshot
from nomicbert.vectors.embedding_model import EmbeddingModel
from nomicbert.vectors.pooling import Finish
from nomicbert_kernels.tiling import tile_rows

logger = logging.getLogger(__name__)

SWITCH = "NOMICBERT_GRAPHS"
# Kinds of device whose launches can be recorded.
DEVICES = ("cuda",)
# Tokens of a bucket: whole tiles of 128 rows.
BUCKETS = (64, 128, 256, 512, 1024, 1536, 2048, 2816, 4096, 5632, 8448, 11264, 16896)
# Work on a bucket at most, in multiplications of one layer: on Hopper above it a layer's kernels
# take longer than its seven launches, a quarter of a millisecond. By arithmetic, not measured.
WORK = 5.5e10
# Graphs that are kept.
MOST = 64


# Token ids of B texts, the longest first, and what becomes of the vectors -> (B, dim) fp32.
Encode = Callable[[Sequence[Sequence[int]], Finish], Tensor]

# torch records one graph at a time in a process.
RECORDING = threading.Lock()


class Recorder:
    """Records on the current GPU.

    All on one stream, for a pool of memory and the library's workspace belong to a stream: so all
    graphs share both, and only one may run at a time.
    """

    def __init__(self) -> None:
        """The stream and the pool are made by the first graph."""
        self._aside: Any = None
        self._pool: Any = None

    def __call__(self, work: Work) -> tuple[Tensor, Callable[[], None]]:
        """See Record."""
        current = torch.cuda.current_stream()
        if self._aside is None:
            self._aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            self._pool = torch.cuda.graph_pool_handle()
        aside = self._aside
        # should recording fail, torch would leave its stream behind as the current one
        with RECORDING, torch.cuda.stream(current):
            aside.wait_stream(current)
            try:
                with torch.cuda.stream(aside):
                    work()  # compiles kernels and prepares weights, which cannot be recorded
                graph = torch.cuda.CUDAGraph()
                # other threads may go on, such as one that asks for pinned memory
                mode = "thread_local"
                with torch.cuda.graph(graph, self._pool, stream=aside, capture_error_mode=mode):
                    result = work()
            finally:
                # what it reads is free for others only then, also where memory has run out
                current.wait_stream(aside)
        return result, graph.replay


class Graphs:
    """From token ids to vectors: with a graph where one serves, else launch by launch."""

    def __init__(self) -> None:
        """Nothing is recorded yet."""
        self._recorder: Callable[[], Record] = Recorder
        self._record: Record | None = None
        self._kept: dict[Key, Bucket] = {}
        self._made_for: tuple[Any, ...] = ()
        self._snapshot: ParameterSnapshot | None = None
        self._beyond = math.inf
        self._lock = threading.Lock()
        self._done: Any = None

    def around(self, model: EmbeddingModel) -> Encode:
        """What a stream sends its batches through: this on a GPU, elsewhere the model itself."""
        if model.device.type in DEVICES:
            return functools.partial(self, model)
        self.clear()  # those of a model that has left its GPU
        return model.encode_ids

    def __call__(
        self, model: EmbeddingModel, texts: Sequence[Sequence[int]], finish: Finish
    ) -> Tensor:
        """Encode and pool a batch under inference_mode, with a graph where one serves.

        Args:
            model: encoder and pooling.
            texts: token ids of B texts, the longest first; in another order none is recorded.
            finish: what becomes of the vectors.

        Returns: (B, dim) fp32 on the model's device.
        Raises: RuntimeError: the caller is recording: a batch's ids would be recorded with it.
        """
        if model.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                "texts cannot be embedded while a CUDA graph is recorded: record NomicBert.core"
            )
        if not records(model.encoder):
            self.clear()
        elif key := self._key(model, texts, finish):
            # the buffers are one batch's at a time, whichever thread brings it
            with self._lock, on(model.device):
                try:
                    return self._run(self._bucket(model, key), texts)
                except RuntimeError as error:
                    # torch's own says so, and so does the driver where it makes the graph
                    if "out of memory" not in str(error):
                        raise
                    self._give_up(key)
        return model.encode_ids(texts, finish)

    def clear(self) -> None:
        """Give back what was recorded, and its memory."""
        if self._kept or self._beyond < math.inf:
            with self._lock:
                self._drop()
                self._beyond = math.inf

    def _give_up(self, key: Key) -> None:
        """Take none as large any more: a bucket is larger than its batch, and holds memory."""
        self._drop()
        self._beyond = key.tokens
        logger.warning("no memory for a graph of %d tokens: such batches go without", key.tokens)

    def _drop(self) -> None:
        """Forget all graphs, once the last batch is through."""
        if self._done is not None:
            self._done.synchronize()
        self._kept.clear()
        self._record = self._done = self._snapshot = None

    def _key(
        self, model: EmbeddingModel, texts: Sequence[Sequence[int]], finish: Finish
    ) -> Key | None:
        """What serves these texts, or None.

        That is so for too many tokens or texts, for angles of their own, and where the longest does
        not come first.
        """
        encoder = model.encoder
        lengths = list(map(len, texts))
        if not lengths or lengths[-1] == 0 or lengths[0] > encoder.plain_length:
            return None
        if lengths != sorted(lengths, reverse=True):
            return None  # they may need more tiles than there is room for
        heads = (encoder.config.head_dim, encoder.compute_dtype, encoder.device)
        tile = tile_rows(lengths[0], *heads)
        if encoder.rotary is None and tile > encoder.plain_length:
            return None  # what fills up is as long as a tile, and there are no such positions
        least = int(model.pooling.reads_one_token)
        fitting = (tokens for tokens in buckets(encoder.config) if tokens < self._beyond)
        keys = (Key(tokens, tile, least, finish) for tokens in fitting)
        batch = sum(lengths), len(lengths)
        return next((key for key in keys if key.holds(*batch)), None)

    def _bucket(self, model: EmbeddingModel, key: Key) -> Bucket:
        encoder, pooling = modules = (model.encoder, model.pooling)
        ends = (pooling.mode, pooling.normalize, pooling.matryoshka_layer_norm, pooling.activations)
        now = (encoder.ops.name, encoder.compute_dtype, ends)
        full = key not in self._kept and len(self._kept) >= MOST
        snapshot = self._snapshot
        if snapshot is None or full or now != self._made_for or not snapshot.holds(modules):
            self._drop()
            # backend "triton" reads the parameters where they lie
            copied = encoder.ops.name != "triton"
            self._made_for, self._snapshot = now, ParameterSnapshot(modules, copied)
        if key not in self._kept:
            self._record = self._record or self._recorder()
            self._kept[key] = Bucket(model, key, self._record)
            logger.info("recorded a graph for batches of up to %d tokens", key.tokens)
        return self._kept[key]

    def _run(self, bucket: Bucket, texts: Sequence[Sequence[int]]) -> Tensor:
        if not bucket.buffer.is_cuda:
            return bucket(texts)
        stream = torch.cuda.current_stream(bucket.device)
        if self._done is not None:
            stream.wait_event(self._done)  # it may be on another thread's stream
        found = bucket(texts)
        self._done = stream.record_event()
        return found

    def __deepcopy__(self, memo: dict[int, Any]) -> "Graphs":
        """A copied model records its own."""
        return Graphs()

    def __reduce__(self) -> tuple[type["Graphs"], tuple[()]]:
        """A pickled one takes none along."""
        return (Graphs, ())


def buckets(config: EncoderConfig) -> list[int]:
    """Tokens of the buckets of a model."""
    hidden, inner = config.hidden_size, config.intermediate_size
    gated = config.hidden_act == "swiglu"
    layer = 4 * hidden * hidden + (3 if gated else 2) * hidden * inner
    return [tokens for tokens in BUCKETS if tokens * layer <= WORK]


def on(device: torch.device) -> AbstractContextManager[Any]:
    """Make a GPU the current one: streams and graphs are the current one's."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def records(model: NomicBert) -> bool:
    """Whether graphs serve here: our kernels on a GPU, nothing random, and nobody compiling."""
    return (
        model.device.type in DEVICES
        and model.ops.name in ("triton", "fp8")
        and not model.training
        and os.environ.get(SWITCH) != "0"
        and not torch.is_autocast_enabled("cuda")
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
    )
