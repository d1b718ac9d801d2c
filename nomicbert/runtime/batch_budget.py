"""Default number of tokens in a batch, for calls that do not set `batch_tokens`.

On a CPU it is a constant that keeps the matmuls efficient. On a GPU it avoids wave quantisation: a
GEMM of T rows and N columns is cut into tiles, which the multiprocessors (SMs) take in waves, and
in the last wave some of them are idle. With 132 SMs and tiles of 128 x 128 the GEMMs of
nomic-embed-text-v1.5 leave none idle at multiples of 2,816 tokens; elsewhere up to a quarter of the
SMs are idle in the last wave.
"""

import functools
import logging
from collections.abc import Sequence

import torch

from nomicbert.config import EncoderConfig
from nomicbert.modeling.model import NomicBert
from nomicbert_kernels import launch

logger = logging.getLogger(__name__)

# Batch size on a CPU: measured with nomic-embed-text-v1.5 on 2 cores, larger batches are no faster.
CPU_TOKENS = 4096
# Largest batch on a GPU: beyond it GEMMs get no faster per token.
MOST = 17_000
# The share of a GPU's memory that a batch may take. Free memory is ignored on purpose, so that a
# repeated call gets the same batches; a batch that does not fit is halved.
SHARE = 0.25
# Utilisations that differ by less count as equal: the larger batch is taken.
ALIKE = 0.005
# Assumed tile where no launch table applies: that of the vendor's GEMM library.
TILE = (128, 128)


def batch_tokens(model: NomicBert) -> int:
    """Default limit of tokens per batch, on the model's device."""
    device = model.device
    if device.type != "cuda":
        return CPU_TOKENS
    return gpu_tokens(device, model.compute_dtype, *sizes(model.config))


@functools.cache
def gpu_tokens(
    device: torch.device, dtype: torch.dtype, gemms: tuple[tuple[int, int], ...], token: int
) -> int:
    """Default limit of tokens per batch on a GPU.

    Args:
        device: the GPU.
        dtype: of the hidden states.
        gemms: (columns, width) of the linear layers.
        token: peak memory of a token, in elements of `dtype`.
    """
    properties = torch.cuda.get_device_properties(device)
    try:
        settings = launch.settings("linear", device, dtype, rows=MOST, n=1, k=1)
        tile = settings["BLOCK_M"], settings["BLOCK_N"]
    except LookupError:
        tile = TILE
    most = min(MOST, int(properties.total_memory * SHARE) // (token * dtype.itemsize))
    found = even_tokens(gemms, properties.multi_processor_count, tile, most)
    logger.info(
        "batches of up to %d tokens on %s: at most %.2f GB in addition to the parameters",
        found,
        device,
        found * token * dtype.itemsize / 1e9,
    )
    return found


def sizes(config: EncoderConfig) -> tuple[tuple[tuple[int, int], ...], int]:
    """(columns, width) of a layer's linear layers, and the peak number of elements per token.

    The columns of a gated MLP count once, because one tile computes both halves.
    """
    hidden, inner = config.hidden_size, config.intermediate_size
    gemms = ((3 * hidden, hidden), (hidden, hidden), (inner, hidden), (hidden, inner))
    # in attention: the layer's input, q, k, v and the attention output; in the MLP: its input, the
    # residual, up, gate and their elementwise product
    return gemms, max(6 * hidden, 2 * hidden + 3 * inner)


def fill(
    tokens: int,
    gemms: Sequence[tuple[int, int]],
    processors: int,
    tile: tuple[int, int],
) -> float:
    """Utilisation of the multiprocessors: 1 if the last wave of each GEMM is full."""
    useful = spent = 0.0
    for columns, width in gemms:
        tiles = -(-tokens // tile[0]) * -(-columns // tile[1])
        waves = -(-tiles // processors)
        useful += tokens * columns * width
        spent += waves * processors * tile[0] * tile[1] * width
    return useful / spent


def even_tokens(
    gemms: Sequence[tuple[int, int]], processors: int, tile: tuple[int, int], most: int
) -> int:
    """The largest batch whose utilisation is within ALIKE of the best.

    Args:
        gemms: (columns, width) of the linear layers.
        processors: number of multiprocessors of the GPU.
        tile: rows and columns of a tile.
        most: limit of tokens per batch.
    """
    choices = range(most // tile[0] * tile[0], 0, -tile[0])
    fills = {tokens: fill(tokens, gemms, processors, tile) for tokens in choices}
    best = max(fills.values(), default=0.0)
    # if memory does not even hold one row of tiles, use all that fits
    return next((tokens for tokens in choices if fills[tokens] >= best - ALIKE), max(1, most))
