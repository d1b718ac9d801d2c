"""Which tokens a Triton program takes at a time; made on the host, once a batch.

A tile is at most `rows` neighbouring tokens. A text of more than half of that has tiles of its own;
shorter neighbours share one, so that 20,000 queries of 8 tokens are 2,500 tiles. Texts without
tokens are in none. Tiles with the most keys come first: a program that starts last should be short.
"""

from collections.abc import Sequence

import numpy as np
import torch

from nomicbert_kernels import launch
from nomicbert_kernels.tensors import Plan, Tiles, to_device

# The widest head that a program holds in registers.
WIDEST_HEAD = 256
# A batch of texts up to this length takes the small tiles.
SHORT = 256


def check_head_dim(head_dim: int) -> None:
    """Refuse a head that no program can hold."""
    if not 1 <= head_dim <= WIDEST_HEAD:
        raise ValueError(
            f"the head size must be 1 to {WIDEST_HEAD} for backend 'triton', not {head_dim}: "
            "use backend 'torch'"
        )


def settings_of(
    rows: int, head_dim: int, device: torch.device, dtype: torch.dtype
) -> launch.Settings:
    """How attention is launched on tiles of so many rows."""
    short = launch.settings("attention_short", device, dtype, head_dim=head_dim)
    if rows <= short["BLOCK_M"]:
        return short
    return launch.settings("attention_long", device, dtype, head_dim=head_dim)


def groups(lengths: np.ndarray, offsets: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """First text and text after the last of each group: one long text, or short ones for a tile."""
    texts = len(lengths)
    # in a tile that is shared, a text's keys begin somewhere within a block of them
    alone = (lengths == 0) | (lengths > rows // 2) | launch.is_invariant()
    # the first text that no longer fits beside this one, and the first that stands alone
    full = np.searchsorted(offsets, offsets[:-1] + rows, side="right") - 1
    barrier = np.minimum.accumulate(np.where(alone, np.arange(texts), texts)[::-1])[::-1]
    after = np.where(alone, np.arange(1, texts + 1), np.minimum(full, barrier)).tolist()
    starts = []
    text = 0
    while text < texts:
        starts.append(text)
        text = after[text]
    first = np.array(starts, dtype=np.int64)
    last = np.append(first[1:], texts)[: len(first)]
    filled = lengths[first] > 0
    return first[filled], last[filled]


def tile_table(lengths: np.ndarray, rows: int) -> np.ndarray:
    """The (n, 4) table of `Tiles`, those with the most keys first."""
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    first, last = groups(lengths, offsets, rows)
    start, stop = offsets[first], offsets[last]
    order = np.argsort(start - stop, kind="stable")
    first, last, start, stop = first[order], last[order], start[order], stop[order]
    tiles = -(-(stop - start) // rows)
    # the tiles of a group count from 0
    number = np.arange(tiles.sum()) - np.repeat(np.cumsum(tiles) - tiles, tiles)
    token = np.repeat(start, tiles) + number * rows
    count = np.minimum(np.repeat(stop, tiles) - token, rows)
    return np.stack((token, count, np.repeat(first, tiles), np.repeat(last, tiles)), axis=1)


def most_tiles(tokens: int, rows: int) -> int:
    """How many tiles texts of so many tokens can need, if their lengths fall, at most.

    A text with tiles of its own needs at most one for each rows / 2 of its tokens. Of tiles that
    short texts share, two that follow each other hold more than `rows`; the last may hold less. The
    same goes for texts that fill up a batch: of these whole tiles come first, then a part of one,
    then those of one token, whose last tile may hold less. These three tiles come in addition.
    """
    return 2 * -(-tokens // rows) + 3


def tile_rows(longest: int, head_dim: int, dtype: torch.dtype, device: torch.device | str) -> int:
    """Tokens of a tile, for a batch whose longest text has so many.

    Raises: ValueError: a head size that the kernels cannot take.
    """
    check_head_dim(head_dim)
    small = longest <= SHORT or launch.is_invariant()
    name = "attention_short" if small else "attention_long"
    rows: int = launch.settings(name, torch.device(device), dtype, head_dim=head_dim)["BLOCK_M"]
    return rows


def plan_tiles(
    lengths: Sequence[int], head_dim: int, dtype: torch.dtype, device: torch.device | str
) -> Plan:
    """The tiles of a batch.

    Args:
        lengths: tokens of each text, on the host.
        head_dim: size of a head, 1 to 256.
        dtype: of the hidden states.
        device: where the kernels run.

    Raises: ValueError: a head size that the kernels cannot take.
    """
    counts = np.asarray(lengths, dtype=np.int64)
    rows = tile_rows(int(counts.max(initial=0)), head_dim, dtype, device)
    table = tile_table(counts, rows)
    text = np.repeat(np.arange(len(counts)), counts)
    both = to_device(np.concatenate((table.ravel(), text)).astype(np.int32), device)
    return Plan(tiles=Tiles(both[: table.size].view(-1, 4), both[table.size :], rows))
