"""The packed layout: the tokens of all texts concatenated, without padding.

All code from here to pooling uses a PackedBatch; attention masks are only handled here.
Names: FlashAttention's variable-length interface, Dao 2023, arXiv:2307.08691.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from nomicbert.modeling.tracing import refuse_export, refuse_jit
from nomicbert.user_warnings import EmptyRowWarning, warn
from nomicbert_kernels.tensors import to_device

# Maximum number of rows named in a warning.
LISTED = 5


@dataclass(frozen=True)
class PackedBatch:
    """B texts as T tokens.

    Attributes:
        lengths: tokens of each text, on the host.
        rope_lengths: the length that sets each text's rotary scaling, on the host: its own, or
            that of the padded row it came from.
        cu_seqlens: (B + 1,) int32, text b owns tokens cu_seqlens[b] to cu_seqlens[b + 1] - 1.
        position_ids: (T,) int64.
        input_ids: (T,) int64, or None if `inputs_embeds` replaces them.
        token_type_ids: (T,) int64, or None for type 0 throughout.
        inputs_embeds: (T, H) or None.
        prompt_tokens: leading tokens of every text that are its prompt's, which some checkpoints
            leave out of pooling.
    """

    lengths: tuple[int, ...]
    rope_lengths: tuple[int, ...]
    cu_seqlens: Tensor
    position_ids: Tensor
    input_ids: Tensor | None = None
    token_type_ids: Tensor | None = None
    inputs_embeds: Tensor | None = None
    prompt_tokens: int = 0

    def first_tokens(self) -> Tensor:
        """(B,) int64, index of each text's first token."""
        return self.cu_seqlens[:-1].long()

    def last_tokens(self) -> Tensor:
        """(B,) int64, index of each text's last token."""
        return self.cu_seqlens[1:].long() - 1

    def without_empty(self) -> tuple["PackedBatch", list[int]]:
        """The batch without empty texts, and the indices of the texts that remain."""
        kept = [text for text, length in enumerate(self.lengths) if length]
        if len(kept) == len(self.lengths):
            return self, kept
        lengths = tuple(self.lengths[text] for text in kept)
        return replace(
            self,
            lengths=lengths,
            rope_lengths=tuple(self.rope_lengths[text] for text in kept),
            cu_seqlens=offsets(lengths, self.cu_seqlens.device),
        ), kept


def offsets(lengths: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """Cumulative lengths, (B + 1,) int32."""
    total = np.zeros(len(lengths) + 1, dtype=np.int32)
    np.cumsum(lengths, out=total[1:])
    return to_device(total, device)


def pack(
    texts: Sequence[Sequence[int]], device: torch.device | str = "cpu", prompt_tokens: int = 0
) -> PackedBatch:
    """Concatenate token ids; positions count from 0 in each text.

    Args:
        texts: token ids of each text.
        device: of the tensors.
        prompt_tokens: see PackedBatch.

    Raises: BackendError: torch.jit is tracing, and would hold the ids as constants.
    """
    refuse_jit()
    lengths = tuple(map(len, texts))
    return PackedBatch(
        lengths=lengths,
        rope_lengths=lengths,
        cu_seqlens=offsets(lengths, device),
        position_ids=to_device(positions(lengths), device),
        input_ids=to_device(end_to_end(texts), device),
        prompt_tokens=prompt_tokens,
    )


def end_to_end(texts: Sequence[Sequence[int]]) -> np.ndarray:
    """The token ids of all texts, (T,) int64."""
    parts = [np.asarray(text, dtype=np.int64) for text in texts]
    return np.concatenate(parts or [np.zeros(0, np.int64)])


def positions(lengths: Sequence[int] | np.ndarray) -> np.ndarray:
    """Each token's position in its text, from 0: (T,) int64."""
    counts = np.asarray(lengths, dtype=np.int64)
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)


@dataclass(frozen=True)
class Padding:
    """Positions of packed tokens in the padded batch that they came from.

    Attributes:
        places: (T,) int64, index of each token in the flattened padded batch.
        rows: of the padded batch.
        columns: of the padded batch.
    """

    places: Tensor
    rows: int
    columns: int

    def pad(self, packed: Tensor) -> Tensor:
        """Scatter (T, N) back into the padded layout: (rows, columns, N), zeros elsewhere."""
        padded = packed.new_zeros(self.rows * self.columns, packed.shape[1])
        padded = padded.index_copy(0, self.places, packed)
        return padded.view(self.rows, self.columns, packed.shape[1])


def at_rows(x: Tensor, kept: Sequence[int], count: int) -> Tensor:
    """Spread (len(kept), N) over `count` rows, at the indices `kept`; zeros elsewhere."""
    places = torch.tensor(kept, dtype=torch.int64, device=x.device)
    return x.new_zeros(count, x.shape[1]).index_copy(0, places, x)


def tokens_of(input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
    """Return whichever argument is given: (B, S) int, or (B, S, H).

    Raises: ValueError: both or neither are given, wrong number of dimensions, non-integer ids.
    """
    if input_ids is not None and inputs_embeds is None:
        name, tokens, dims = "input_ids", input_ids, 2
    elif input_ids is None and inputs_embeds is not None:
        name, tokens, dims = "inputs_embeds", inputs_embeds, 3
    else:
        raise ValueError("forward takes either input_ids or inputs_embeds, and not both")
    if tokens.dim() != dims:
        raise ValueError(f"{name} must have {dims} dimensions, not shape {tuple(tokens.shape)}")
    if input_ids is not None and input_ids.is_floating_point():
        raise ValueError(f"input_ids must be integers, not {input_ids.dtype}")
    return tokens


def unpad(
    tokens: Tensor,
    attention_mask: Tensor | None = None,
    token_type_ids: Tensor | None = None,
    position_ids: Tensor | None = None,
) -> tuple[PackedBatch, Padding]:
    """Drop the padding of a padded batch.

    Args:
        tokens: input_ids (B, S) int, or inputs_embeds (B, S, H).
        attention_mask: (B, S) of 0 and 1, any dtype; None keeps every token. Zeros may be
            anywhere: a token's position is its column, not its rank among the kept tokens. Rows
            of zeros only become empty texts, with one EmptyRowWarning for all of them.
        token_type_ids: (B, S) int or None.
        position_ids: (B, S) or (1, S) or (S,) int, in place of the column numbers.

    Returns: the batch, and the padded positions of its tokens.
    Raises: ValueError: shapes differ, the mask has values other than 0 and 1, or a kept token has
        a negative position. BackendError: torch.export is recording.
    """
    batch, length = tokens.shape[:2]
    refuse_export((batch, length), attention_mask=attention_mask, position_ids=position_ids)
    for name, extra in (("attention_mask", attention_mask), ("token_type_ids", token_type_ids)):
        if extra is not None and tuple(extra.shape) != (batch, length):
            raise ValueError(f"{name} must be {(batch, length)}, not {tuple(extra.shape)}")
    longest, given = length, position_ids is not None
    if position_ids is None:
        position_ids = torch.arange(length, device=tokens.device)
    elif position_ids.numel():
        longest = int(position_ids.max()) + 1
    if tuple(position_ids.shape) not in ((batch, length), (1, length), (length,)):
        shape = tuple(position_ids.shape)
        raise ValueError(f"position_ids must be {(batch, length)}, not {shape}")
    position_ids = position_ids.expand(batch, length)

    if attention_mask is None:
        lengths = (length,) * batch
        places = torch.arange(batch * length, device=tokens.device)
    else:
        kept = attention_mask != 0
        if not bool(((attention_mask == 1) | ~kept).all()):
            raise ValueError("attention_mask must hold 0 and 1 only: 1 keeps a token, 0 drops it")
        lengths = tuple(kept.sum(1).tolist())
        places = kept.flatten().nonzero().squeeze(1)
        if empty := [row for row, kept_here in enumerate(lengths) if not kept_here]:
            warn(_name_empty(empty), EmptyRowWarning)

    positions = position_ids.reshape(-1)[places].long()
    # only kept tokens are checked; a negative index would silently read the end of the table
    if given and positions.numel() and int(positions.min()) < 0:
        raise ValueError(f"position_ids contains {int(positions.min())}: positions count from 0")
    rows = tokens.flatten(0, 1)[places]
    return PackedBatch(
        lengths=lengths,
        rope_lengths=(longest,) * batch,
        cu_seqlens=offsets(lengths, tokens.device),
        position_ids=positions,
        input_ids=rows if tokens.dim() == 2 else None,
        token_type_ids=None if token_type_ids is None else token_type_ids.flatten()[places],
        inputs_embeds=rows if tokens.dim() == 3 else None,
    ), Padding(places, batch, length)


def _name_empty(rows: list[int]) -> str:
    if len(rows) == 1:
        return f"row {rows[0]} of attention_mask keeps no token: its hidden states are zeros"
    more = len(rows) - LISTED
    names = [str(row) for row in rows[:LISTED]] + ([f"{more} more"] if more > 0 else [])
    return (
        f"rows {', '.join(names[:-1])} and {names[-1]} of attention_mask keep no token: "
        "their hidden states are zeros"
    )
