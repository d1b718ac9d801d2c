"""How many tokens make a batch, where a call does not say.

On a CPU, as many as keep its matrix products busy. On a GPU, as many as fill it evenly: a product
of T rows and N columns is cut into tiles, which the processors take in waves, and in the last wave
some of them have nothing to do. With 132 processors and tiles of 128 x 128 the products of
nomic-embed-text-v1.5 leave none idle at multiples of 2,816 tokens, and a quarter in the last wave
elsewhere.
"""

import functools
import logging
from collections.abc import Sequence

import torch

from nomicbert.config import EncoderConfig
from nomicbert.modeling.model import NomicBert
from nomicbert_kernels import launch

logger = logging.getLogger(__name__)

# Of a batch on a CPU: measured with nomic-embed-text-v1.5 on 2 cores, more is no faster.
CPU_TOKENS = 4096
# Of a batch on a GPU at most: its products are as fast as those of more tokens by then.
MOST = 17_000
# The share of a GPU's memory that a batch may take. What is free now does not count: a call that is
# repeated shall have the same batches, and one that does not fit is halved.
SHARE = 0.25
# Fills that differ by less are alike: the larger batch is taken.
ALIKE = 0.005
# A tile where no launch table tells: that of the library's products.
TILE = (128, 128)


def batch_tokens(model: NomicBert) -> int:
    """Tokens of a batch at most, on the device where the model is."""
    device = model.device
    if device.type != "cuda":
        return CPU_TOKENS
    return gpu_tokens(device, model.compute_dtype, *sizes(model.config))


@functools.cache
def gpu_tokens(
    device: torch.device, dtype: torch.dtype, products: tuple[tuple[int, int], ...], token: int
) -> int:
    """The same for a GPU.

    Args:
        device: the GPU.
        dtype: of the hidden states.
        products: (columns, width) of the linear layers.
        token: numbers that a token takes in memory at most, of `dtype`.
    """
    properties = torch.cuda.get_device_properties(device)
    try:
        settings = launch.settings("linear", device, dtype, rows=MOST, n=1, k=1)
        tile = settings["BLOCK_M"], settings["BLOCK_N"]
    except LookupError:
        tile = TILE
    most = min(MOST, int(properties.total_memory * SHARE) // (token * dtype.itemsize))
    found = even_tokens(products, properties.multi_processor_count, tile, most)
    logger.info(
        "batches of up to %d tokens on %s: at most %.2f GB beside the parameters",
        found,
        device,
        found * token * dtype.itemsize / 1e9,
    )
    return found


def sizes(config: EncoderConfig) -> tuple[tuple[tuple[int, int], ...], int]:
    """(columns, width) of a layer's linear layers, and the numbers a token takes at most.

    The columns of a gated MLP count once: a tile of it computes both halves.
    """
    hidden, inner = config.hidden_size, config.intermediate_size
    products = ((3 * hidden, hidden), (hidden, hidden), (inner, hidden), (hidden, inner))
    # in attention: the layer's input, q, k, v, and what is mixed of them; in the MLP: its input,
    # the residual, up, gate and their product
    return products, max(6 * hidden, 2 * hidden + 3 * inner)


def fill(
    tokens: int,
    products: Sequence[tuple[int, int]],
    processors: int,
    tile: tuple[int, int],
) -> float:
    """The share of the processors' time that is work: 1 where the last wave of each is full."""
    useful = spent = 0.0
    for columns, width in products:
        tiles = -(-tokens // tile[0]) * -(-columns // tile[1])
        waves = -(-tiles // processors)
        useful += tokens * columns * width
        spent += waves * processors * tile[0] * tile[1] * width
    return useful / spent


def even_tokens(
    products: Sequence[tuple[int, int]], processors: int, tile: tuple[int, int], most: int
) -> int:
    """The largest batch that fills a GPU about as evenly as any.

    Args:
        products: (columns, width) of the linear layers.
        processors: of the GPU.
        tile: rows and columns of a tile.
        most: tokens of a batch at most.
    """
    choices = range(most // tile[0] * tile[0], 0, -tile[0])
    fills = {tokens: fill(tokens, products, processors, tile) for tokens in choices}
    best = max(fills.values(), default=0.0)
    # where not even one row of tiles fits, a batch is what fits
    return next((tokens for tokens in choices if fills[tokens] >= best - ALIKE), max(1, most))
