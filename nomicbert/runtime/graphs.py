"""CUDA graphs: record the kernel launches of a small batch once, replay them in one launch.

For a small batch, launching some ninety kernels takes the host longer than running them takes the
GPU. So the launches are recorded per bucket (a number of tokens) and replayed for every batch that
fits into it.

NOMICBERT_GRAPHS=0 disables graphs. A bucket is recorded when its first batch arrives, so that a
repeated call takes the same path each time. Recorded graphs hold the addresses of the parameters
and share the workspace of the GEMM library: when one graph is invalid, all are discarded.
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
from nomicbert.modeling.plain_layers import is_hooked
from nomicbert.runtime.graph_bucket import Bucket, Key, Record, Work
from nomicbert.runtime.parameter_snapshot import ParameterSnapshot
from nomicbert.vectors.embedding_model import EmbeddingModel
from nomicbert.vectors.pooling import Finish
from nomicbert_kernels.tiling import tile_rows

logger = logging.getLogger(__name__)

SWITCH = "NOMICBERT_GRAPHS"
# Device types that support recording.
DEVICES = ("cuda",)
# Tokens of a bucket: whole tiles of 128 rows.
BUCKETS = (64, 128, 256, 512, 1024, 1536, 2048, 2816, 4096, 5632, 8448, 11264, 16896)
# Limit of multiplications per layer in a bucket. Above it a layer's kernels take longer on Hopper
# than their seven launches (0.25 ms). Estimated, not measured.
WORK = 5.5e10
# Limit of graphs kept.
MOST = 64


# Token ids of B texts, the longest first, and the steps after pooling -> (B, dim) fp32.
Encode = Callable[[Sequence[Sequence[int]], Finish], Tensor]

# torch records one graph at a time in a process.
RECORDING = threading.Lock()


class Recorder:
    """Records graphs on the current GPU.

    All graphs are recorded on one stream, because a memory pool and the workspace of the GEMM
    library belong to a stream. So all graphs share both, and only one may run at a time.
    """

    def __init__(self) -> None:
        """The stream and the pool are created with the first graph."""
        self._aside: Any = None
        self._pool: Any = None

    def __call__(self, work: Work) -> tuple[Tensor, Callable[[], None]]:
        """See Record."""
        current = torch.cuda.current_stream()
        if self._aside is None:
            self._aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            self._pool = torch.cuda.graph_pool_handle()
        aside = self._aside
        # restores the current stream: torch does not if recording fails
        with RECORDING, torch.cuda.stream(current):
            aside.wait_stream(current)
            try:
                with torch.cuda.stream(aside):
                    work()  # compiles kernels and prepares weights, which cannot be recorded
                graph = torch.cuda.CUDAGraph()
                # other threads may call CUDA meanwhile, e.g. to allocate pinned memory
                mode = "thread_local"
                with torch.cuda.graph(graph, self._pool, stream=aside, capture_error_mode=mode):
                    result = work()
            finally:
                # later work may reuse the memory it reads only after it, even if recording failed
                current.wait_stream(aside)
        return result, graph.replay


class Graphs:
    """Token ids -> vectors: replays a graph if one fits, else launches each kernel."""

    def __init__(self) -> None:
        """No graph is recorded yet."""
        self._recorder: Callable[[], Record] = Recorder
        self._record: Record | None = None
        self._kept: dict[Key, Bucket] = {}
        self._made_for: tuple[Any, ...] = ()
        self._snapshot: ParameterSnapshot | None = None
        self._beyond = math.inf
        self._lock = threading.Lock()
        self._done: Any = None

    def around(self, model: EmbeddingModel) -> Encode:
        """The encode function of a stream: with graphs on a GPU, else the model's own."""
        if model.device.type in DEVICES:
            return functools.partial(self, model)
        self.clear()  # graphs from before the model was moved off its GPU
        return model.encode_ids

    def __call__(
        self, model: EmbeddingModel, texts: Sequence[Sequence[int]], finish: Finish
    ) -> Tensor:
        """Encode and pool a batch under inference_mode, with a graph if one fits.

        Args:
            model: encoder and pooling.
            texts: token ids of B texts, the longest first; other orders run without a graph.
            finish: steps after pooling.

        Returns: (B, dim) fp32 on the model's device.
        Raises: RuntimeError: the caller is recording a graph, which would contain this batch's ids.
        """
        if model.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                "texts cannot be embedded while a CUDA graph is recorded: record a call of "
                "NomicBert.core instead"
            )
        if not records(model.encoder):
            self.clear()
        elif key := self._key(model, texts, finish):
            # the buffers hold one batch at a time, for all threads
            with self._lock, on(model.device):
                try:
                    if (bucket := self._bucket(model, key)) is not None:
                        return self._run(bucket, texts)
                except RuntimeError as error:
                    # raised by torch's allocator, or by the driver when it creates the graph
                    if "out of memory" not in str(error):
                        raise
                    self._give_up(key)
        return model.encode_ids(texts, finish)

    def clear(self) -> None:
        """Discard all graphs and free their memory."""
        if self._kept or self._beyond < math.inf:
            with self._lock:
                self._drop()
                self._beyond = math.inf

    def _give_up(self, key: Key) -> None:
        """Stop using buckets of this size or larger; the batch itself may still fit without."""
        self._drop()
        self._beyond = key.tokens
        logger.warning(
            "no memory for a graph of %d tokens: batches that need it run without a graph",
            key.tokens,
        )

    def _drop(self) -> None:
        """Discard all graphs once the last batch is done."""
        if self._done is not None:
            self._done.synchronize()
        self._kept.clear()
        self._record = self._done = self._snapshot = None

    def _key(
        self, model: EmbeddingModel, texts: Sequence[Sequence[int]], finish: Finish
    ) -> Key | None:
        """The smallest bucket that fits these texts, or None.

        None if there are too many tokens or texts, if a text needs rotary angles of its own
        (dynamic NTK scaling), or if the longest text does not come first.
        """
        encoder = model.encoder
        lengths = list(map(len, texts))
        if not lengths or lengths[-1] == 0 or lengths[0] > encoder.plain_length:
            return None
        if lengths != sorted(lengths, reverse=True):
            return None  # in this order they may need more tiles than the bucket has
        heads = (encoder.config.head_dim, encoder.compute_dtype, encoder.device)
        tile = tile_rows(lengths[0], *heads)
        if encoder.rotary is None and tile > encoder.plain_length:
            return None  # fillers are as long as a tile, beyond the learned positions
        least = int(model.pooling.reads_one_token)
        fitting = (tokens for tokens in buckets(encoder.config) if tokens < self._beyond)
        keys = (Key(tokens, tile, least, finish) for tokens in fitting)
        batch = sum(lengths), len(lengths)
        return next((key for key in keys if key.holds(*batch)), None)

    def _bucket(self, model: EmbeddingModel, key: Key) -> Bucket | None:
        """The bucket of a key, recorded now if it is new; None if it cannot be recorded."""
        encoder, pooling = modules = (model.encoder, model.pooling)
        steps = tuple(map(str, pooling.steps))
        ends = (pooling.modes, pooling.normalize, pooling.matryoshka_layer_norm, steps)
        now = (encoder.ops.name, encoder.compute_dtype, ends)
        full = key not in self._kept and len(self._kept) >= MOST
        snapshot = self._snapshot
        if snapshot is None or full or now != self._made_for or not snapshot.holds(modules):
            self._drop()
            # backend "triton" reads the parameters in place, other backends read prepared copies
            copied = encoder.ops.name != "triton"
            snapshot = ParameterSnapshot(modules, copied)
            self._made_for, self._snapshot = now, snapshot
        drawn = any(step.training for step in pooling.steps)
        if drawn or not snapshot.recordable() or is_hooked(model):
            return None
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
            stream.wait_event(self._done)  # the last batch may run on another thread's stream
        found = bucket(texts)
        self._done = stream.record_event()
        return found

    def __deepcopy__(self, memo: dict[int, Any]) -> "Graphs":
        """A copied model records its own graphs."""
        return Graphs()

    def __reduce__(self) -> tuple[type["Graphs"], tuple[()]]:
        """Graphs are not pickled."""
        return (Graphs, ())


def buckets(config: EncoderConfig) -> list[int]:
    """Sizes in tokens of a model's buckets."""
    hidden, inner = config.hidden_size, config.intermediate_size
    gated = config.hidden_act == "swiglu"
    layer = 4 * hidden * hidden + (3 if gated else 2) * hidden * inner
    return [tokens for tokens in BUCKETS if tokens * layer <= WORK]


def on(device: torch.device) -> AbstractContextManager[Any]:
    """Make a GPU the current device, which streams and graphs are created on."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def records(model: NomicBert) -> bool:
    """Whether graphs can be used: our kernels on a GPU, no dropout, no autograd, no compiling."""
    return (
        model.device.type in DEVICES
        and model.ops.name in ("triton", "fp8")
        and not model.training
        and os.environ.get(SWITCH) != "0"
        and not torch.is_autocast_enabled("cuda")
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
    )
