"""Attention tiles: which tokens each Triton program processes; made on the host, once per batch.

A tile is at most `rows` neighbouring tokens. A text with more than `rows` / 2 tokens has its own
tiles. Shorter neighbours share a tile, so 20,000 queries of 8 tokens become 2,500 tiles. Empty
texts are in no tile. Tiles with the most keys come first, so that the last programs to start are
short ones.
"""

from collections.abc import Sequence

import numpy as np
import torch

from nomicbert_kernels import launch
from nomicbert_kernels.tensors import Plan, Tiles, to_device

# The widest head that a program holds in registers.
WIDEST_HEAD = 256
# A batch whose longest text has at most this many tokens uses the small tiles.
SHORT = 256


def check_head_dim(head_dim: int) -> None:
    """Refuse a head size that does not fit the registers of a program."""
    if not 1 <= head_dim <= WIDEST_HEAD:
        raise ValueError(
            f"the head size must be 1 to {WIDEST_HEAD} for backend 'triton', not {head_dim}: "
            "use backend 'torch'"
        )


def settings_of(
    rows: int, head_dim: int, device: torch.device, dtype: torch.dtype
) -> launch.Settings:
    """Launch settings of attention for tiles of `rows` tokens."""
    short = launch.settings("attention_short", device, dtype, head_dim=head_dim)
    if rows <= short["BLOCK_M"]:
        return short
    return launch.settings("attention_long", device, dtype, head_dim=head_dim)


def groups(lengths: np.ndarray, offsets: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Split the texts into groups: one long text, or short ones that share a tile.

    Args:
        lengths: (B,) tokens per text.
        offsets: (B + 1,) first token of each text, and T.
        rows: maximum tokens per tile.

    Returns: first text and last text + 1 of each group that has tokens.
    """
    texts = len(lengths)
    # invariant: in a shared tile a text's keys start anywhere within a block, so the order of its
    # sums, and its last bits, would depend on its neighbours
    alone = (lengths == 0) | (lengths > rows // 2) | launch.is_invariant()
    # A group that starts at text i ends before full[i], the first text whose end exceeds `rows`
    # tokens from the start of i, and before barrier[i], the next text at or after i that is alone.
    full = np.searchsorted(offsets, offsets[:-1] + rows, side="right") - 1
    barrier = np.minimum.accumulate(np.where(alone, np.arange(texts), texts)[::-1])[::-1]
    after = np.where(alone, np.arange(1, texts + 1), np.minimum(full, barrier)).tolist()
    # following `after` visits each group once: fewer host steps than one per text
    starts = []
    text = 0
    while text < texts:
        starts.append(text)
        text = after[text]
    # groups are adjacent: each one ends where the next starts
    first = np.array(starts, dtype=np.int64)
    last = np.append(first[1:], texts)[: len(first)]
    filled = lengths[first] > 0
    return first[filled], last[filled]


def tile_table(lengths: np.ndarray, rows: int) -> np.ndarray:
    """The (n, 4) table of `Tiles`, sorted by number of keys, largest first."""
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    first, last = groups(lengths, offsets, rows)
    start, stop = offsets[first], offsets[last]
    # a group's keys are all its tokens; ascending negative counts sort the largest first
    order = np.argsort(start - stop, kind="stable")
    first, last, start, stop = first[order], last[order], start[order], stop[order]
    tiles = -(-(stop - start) // rows)
    # index of each tile within its group: running index minus that of the group's first tile
    number = np.arange(tiles.sum()) - np.repeat(np.cumsum(tiles) - tiles, tiles)
    token = np.repeat(start, tiles) + number * rows
    count = np.minimum(np.repeat(stop, tiles) - token, rows)
    return np.stack((token, count, np.repeat(first, tiles), np.repeat(last, tiles)), axis=1)


def most_tiles(tokens: int, rows: int) -> int:
    """Upper bound on the number of tiles for `tokens` tokens in texts of descending length.

    - A text with its own tiles needs at most one per rows / 2 of its tokens.
    - Two consecutive shared tiles hold more than `rows` tokens; only the last may hold less.
    - Texts that pad a batch to a fixed size give whole tiles first, then a part of one, then texts
      of one token, whose last tile may hold less.

    These three partly filled tiles are the constant term.
    """
    return 2 * -(-tokens // rows) + 3


def tile_rows(longest: int, head_dim: int, dtype: torch.dtype, device: torch.device | str) -> int:
    """Tokens per tile for a batch whose longest text has `longest` tokens.

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
    # one copy to the device instead of two
    both = to_device(np.concatenate((table.ravel(), text)).astype(np.int32), device)
    return Plan(tiles=Tiles(both[: table.size].view(-1, 4), both[table.size :], rows))
