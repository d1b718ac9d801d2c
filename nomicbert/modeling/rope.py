"""Rotary angles of a batch: inverse frequencies, cos and sin tables, dynamic NTK scaling.

    inv_freq_j = theta^(-2j / d),  j < d / 2,  angle = position * inv_freq_j,  all in fp32
    for a text of L > M tokens with scaling factor a:
    theta' = theta * (a L / M - (a - 1))^(d / (d - 2)),  M the trained length

theta' depends only on L, never on texts that were embedded before.
Source: Su et al. 2021, arXiv:2104.09864, eq. 15; dynamic NTK: emozilla 2023, as in the remote
code of nomic-embed-text-v1 and in transformers' "dynamic" rope type.
"""

import sys
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from nomicbert.config import EncoderConfig
from nomicbert_kernels import Rope

# The tokens of a text: a number, or a 0-dim fp64 tensor in a program of torch.export.
Length = TypeVar("Length", float, Tensor)

# Tables are computed in whole blocks of this many positions. Every entry then goes through the same
# vector instructions, so its last bit does not depend on the length of the table.
BLOCK = 256


class RotaryTables:
    """The tables of one model. Those of the trained theta are cached, scaled ones are not."""

    def __init__(self, config: EncoderConfig) -> None:
        """Read theta, the rotary width and the scaling from the config."""
        self.dim = config.rotary_dim
        self.interleaved = config.rotary_interleaved
        self.theta = config.rope_theta
        self.factor = config.rotary_scaling_factor
        self.trained = config.max_trained_positions
        self._base: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def scaled_theta(self, length: int) -> float:
        """Theta for a text of `length` tokens."""
        if length <= self.plain_length:
            return self.theta
        return self._scaled(float(length))

    def _scaled(self, length: Length) -> Length:
        """Theta for a text of at least the trained length; for that length the trained theta."""
        assert self.factor is not None, "only a checkpoint with scaling has such texts"
        stretch = self.factor * length / self.trained - (self.factor - 1)
        theta: Length = self.theta * stretch ** (self.dim / (self.dim - 2))
        return theta

    def table(
        self, rope_lengths: Sequence[int], lengths: Sequence[int], position_ids: Tensor
    ) -> Rope:
        """Build the tables of a batch, and each token's row in them.

        Args:
            rope_lengths: the length that sets each text's theta; greater than all its positions.
            lengths: tokens of each text.
            position_ids: (T,) int64.

        Returns: cos and sin (rows, d / 2) fp32 on the device of `position_ids`.
        """
        device = position_ids.device
        scaled = {n: t for n in set(rope_lengths) if (t := self.scaled_theta(n)) != self.theta}
        plain = max((n for n in rope_lengths if n not in scaled), default=0)
        cos, sin = self.plain(plain, device)
        if not scaled:
            return Rope(cos, sin, position_ids.to(torch.int32), self.dim, self.interleaved)

        blocks, first_row = [(cos, sin)], {}
        rows = cos.shape[0]
        for length, theta in sorted(scaled.items()):
            blocks.append(tuple(t.to(device) for t in angles(length, theta, self.dim)))  # type: ignore[arg-type]
            first_row[length] = rows
            rows += blocks[-1][0].shape[0]
        first = torch.tensor([first_row.get(n, 0) for n in rope_lengths], device=device)
        repeats = torch.tensor(lengths, device=device)
        start = torch.repeat_interleave(first, repeats, output_size=position_ids.numel())
        return Rope(
            torch.cat([c for c, _ in blocks]),
            torch.cat([s for _, s in blocks]),
            (start + position_ids).to(torch.int32),
            self.dim,
            self.interleaved,
        )

    def of_equal_lengths(self, texts: int, length: int) -> Rope:
        """The tables of texts of one length, on the CPU.

        The formulas are those of `table`, but on tensors: torch.export can record them with a
        symbolic number of texts and tokens. Last bits of cos and sin may depend on the length.
        """
        theta: float | Tensor = self.theta
        if self.plain_length < sys.maxsize:
            known = torch.full((), length, dtype=torch.float64, device="cpu")
            theta = self._scaled(known.clamp_min(self.trained))
        position = torch.arange(length, device="cpu")
        angle = position.float()[:, None] * frequencies(theta, self.dim)
        row = position.repeat(texts).to(torch.int32)
        return Rope(angle.cos(), angle.sin(), row, self.dim, self.interleaved)

    def plain(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Cos and sin for the trained theta, of at least `length` positions; cached per device."""
        kept = self._base.get(device)
        if kept is None or kept[0].shape[0] < length:
            cos, sin = angles(length, self.theta, self.dim)
            with torch.inference_mode(False):
                kept = cos.to(device), sin.to(device)
            # a stand-in of torch.export or of FakeTensorMode would be wrong in later calls
            if type(kept[0]) is Tensor:
                self._base[device] = kept
        return kept

    @property
    def plain_length(self) -> int:
        """Maximum length at which a text still uses the trained theta."""
        scales = self.factor is not None and self.dim > 2
        return self.trained if scales else sys.maxsize


def frequencies(theta: float | Tensor, dim: int) -> Tensor:
    """The angle per position of each pair, (dim / 2,) fp32 on the CPU."""
    exponent = torch.arange(0, dim, 2, dtype=torch.int64, device="cpu").float() / dim
    return 1.0 / theta**exponent


def angles(length: int, theta: float, dim: int) -> tuple[Tensor, Tensor]:
    """Cos and sin of positions 0 to at least length - 1, each (rows, dim / 2) fp32 on the CPU."""
    # the table may be cached beyond an inference_mode block, and then used in a training step
    with torch.inference_mode(False):
        inv_freq = frequencies(theta, dim)
        blocks = [
            torch.arange(start, start + BLOCK, device="cpu").float()[:, None] * inv_freq
            for start in range(0, max(length, 1), BLOCK)
        ]
        return torch.cat([b.cos() for b in blocks]), torch.cat([b.sin() for b in blocks])
