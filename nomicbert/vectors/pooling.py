"""Hidden states -> one vector per text: pooling, then Dense and other steps, layer_norm, slice, L2.

Source: pooling modes and order of modules as in sentence-transformers; the Matryoshka recipe
(layer_norm over the full width, slice, L2) as in nomic-embed-text-v1.5's card.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nomicbert.arguments import as_whole
from nomicbert.modeling.context import ForwardContext
from nomicbert.modeling.packing import PackedBatch, offsets, positions
from nomicbert.modeling.prepared_weights import PreparedWeights
from nomicbert.vectors.steps import Dropout, Normalize, Step, pool_rows
from nomicbert_kernels import Ops, PoolMode, Weight
from nomicbert_kernels.backend import plan_runs
from nomicbert_kernels.tensors import ONE_TOKEN_MODES, to_device


@dataclass(frozen=True)
class Finish:
    """Steps after pooling that a call asks for.

    Attributes:
        matryoshka_dim: layer_norm if the checkpoint's recipe has it -> slice -> L2; or None.
        truncate_dim: slice only; or None.
        normalize: L2 as the last step.
        unnormalized: leave out the L2 at the end: the one that the checkpoint's modules end with,
            and that of matryoshka_dim.
    """

    matryoshka_dim: int | None = None
    truncate_dim: int | None = None
    normalize: bool = False
    unnormalized: bool = False


class Pooling(nn.Module):
    """All steps after the encoder: hidden states -> vectors.

    Attributes:
        modes: how a text's hidden states become one vector; several are concatenated.
        include_prompt: False leaves a text's `PackedBatch.prompt_tokens` first tokens out of it.
        steps: the modules after pooling, in order, without an L2 at the end.
        normalize: whether the checkpoint's modules end with L2.
        matryoshka_layer_norm: whether its Matryoshka recipe begins with layer_norm.
        embedding_dimension: columns of a vector.
    """

    def __init__(
        self,
        width: int,
        modes: Sequence[PoolMode] = ("mean",),
        steps: Sequence[Step] = (),
        normalize: bool = False,
        matryoshka_layer_norm: bool = False,
        include_prompt: bool = True,
    ) -> None:
        """`width` is the encoder's hidden size."""
        super().__init__()
        self.modes = tuple(modes)
        self.steps = nn.ModuleList(steps)
        self.normalize = normalize
        self.matryoshka_layer_norm = matryoshka_layer_norm
        self.include_prompt = include_prompt
        self.embedding_dimension = width * len(self.modes)
        for step in steps:
            self.embedding_dimension = step.columns(self.embedding_dimension)
        self._prepared = PreparedWeights()

    @property
    def mode(self) -> str:
        """The modes as one word, such as "mean" or "cls+max"."""
        return "+".join(self.modes)

    def check(self, finish: Finish) -> None:
        """Refuse an invalid width, and steps that contradict each other.

        Raises: TypeError, ValueError: it names the argument and the value.
        """
        width = self.embedding_dimension
        for name in ("matryoshka_dim", "truncate_dim"):
            dim = getattr(finish, name)
            if dim is None:
                continue
            if not 1 <= as_whole(name, dim) <= width:
                raise ValueError(f"{name} must be 1 to {width}, not {dim}")
        if finish.matryoshka_dim is not None and finish.truncate_dim is not None:
            raise ValueError("give matryoshka_dim or truncate_dim, not both")
        if finish.normalize and finish.unnormalized:
            raise ValueError("give normalize or unnormalized, not both")

    @property
    def reads_one_token(self) -> bool:
        """Whether only one hidden state per text is used."""
        return len(self.modes) == 1 and self.modes[0] in ONE_TOKEN_MODES

    def rows(self, batch: PackedBatch) -> Tensor | None:
        """(B,) int64: the only token of each text that is used, or None if all are."""
        if not self.reads_one_token or not batch.position_ids.shape[0]:
            return None
        return self._first(batch) if self.modes[0] == "cls" else batch.last_tokens()

    def forward(
        self, hidden: Tensor, ctx: ForwardContext, rows: Tensor | None, finish: Finish
    ) -> Tensor:
        """Pool a batch and apply all later steps.

        Args:
            hidden: (T, hidden_size) of every token, or (B, hidden_size) of those in `rows`.
            ctx: of the forward pass that computed them.
            rows: the result of `self.rows` that was passed to the encoder, or None.
            finish: steps that the call asks for.

        Returns: (B, dim) fp32; undefined for an empty text.
        """
        if self.steps or len(self.modes) > 1 or self._skipped(ctx.batch):
            return self.finish(ctx.ops, self.pool(hidden, ctx, rows), finish)
        # pooling, layer_norm, slice and L2 in one op
        recipe = self._recipe(finish)
        if rows is not None:
            return self._last(pool_rows(ctx.ops, hidden, *recipe), finish)
        batch, plan = ctx.batch, ctx.plan
        return self._last(
            ctx.ops.pool(hidden, batch.cu_seqlens, plan, self.modes[0], *recipe), finish
        )

    def pool(self, hidden: Tensor, ctx: ForwardContext, rows: Tensor | None) -> Tensor:
        """Pool a batch, without the later steps: (B, hidden_size x modes) fp32.

        A text without any token but its prompt's gives zeros, or its first token by "cls".
        """
        batch, skipped = ctx.batch, self._skipped(ctx.batch)
        if rows is not None:
            pooled = pool_rows(ctx.ops, hidden)
            if skipped and self.modes[0] == "lasttoken":
                return pooled * (batch.cu_seqlens.diff() > skipped)[:, None]
            return pooled
        if not skipped:
            parts = [ctx.ops.pool(hidden, batch.cu_seqlens, ctx.plan, mode) for mode in self.modes]
            return parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        lengths = np.array(batch.lengths, np.int64)
        kept = np.maximum(lengths - skipped, 0)
        # a kept token's rank among those of its text, counted from where they start
        starts = np.cumsum(lengths) - lengths + skipped
        places = to_device(positions(kept) + np.repeat(starts, kept), hidden.device)
        left, edges = hidden.index_select(0, places), offsets(kept.tolist(), hidden.device)
        plan = plan_runs(kept.tolist(), 1, 1, hidden.dtype)

        def pooled_by(mode: PoolMode) -> Tensor:
            if mode == "cls":
                return pool_rows(ctx.ops, hidden[self._first(batch)])
            found: Tensor = ctx.ops.pool(left, edges, plan, mode)
            if mode != "weightedmean":
                return found
            # tokens keep the weights of their places in the whole text: i + skipped in place of i
            own = to_device(kept.astype(np.float32) + 1, hidden.device)[:, None]
            more = 2 * skipped
            mean = ctx.ops.pool(left, edges, plan, "mean")
            return (found * own + mean * more) / (own + more)

        return torch.cat([pooled_by(mode) for mode in self.modes], 1)

    def finish(self, ops: Ops, pooled: Tensor, finish: Finish) -> Tensor:
        """Apply all steps after pooling: (B, hidden_size x modes) fp32 -> (B, dim) fp32."""
        x = pooled
        for step in self.steps_for(finish):
            x = step(x, ops, self._prepared)
        return self._last(pool_rows(ops, x, *self._recipe(finish)), finish)

    def steps_for(self, finish: Finish) -> list[nn.Module]:
        """The modules after pooling that a call runs.

        An unnormalized vector is without every L2 that only dropout or another L2 follows: those
        before the last one, which is `normalize`, are modules like others.
        """
        steps = [*self.steps]
        if not finish.unnormalized:
            return steps
        others = (i for i, step in enumerate(steps) if not isinstance(step, Normalize | Dropout))
        last = max(others, default=-1)
        return [step for i, step in enumerate(steps) if i < last or not isinstance(step, Normalize)]

    def prepared_weights(self) -> list[Weight]:
        """The weights of the Dense layers prepared so far."""
        return self._prepared.weights()

    def _skipped(self, batch: PackedBatch) -> int:
        """Tokens at the start of each text that are left out."""
        return 0 if self.include_prompt else batch.prompt_tokens

    def _first(self, batch: PackedBatch) -> Tensor:
        """(B,) int64: the first token of each text that is not left out, or its first one."""
        first, skipped = batch.first_tokens(), self._skipped(batch)
        if not skipped:
            return first
        return first + skipped * (batch.cu_seqlens.diff() > skipped)

    def _recipe(self, finish: Finish) -> tuple[bool, int | None, bool]:
        """The arguments layer_norm, dim and L2 of the pooling op."""
        short = finish.matryoshka_dim is not None
        unit = (self.normalize or short) and not finish.unnormalized
        return self.matryoshka_layer_norm and short, finish.matryoshka_dim, unit

    def _last(self, x: Tensor, finish: Finish) -> Tensor:
        """Apply truncate_dim and normalize, the steps after the checkpoint's own modules."""
        x = x[:, : finish.truncate_dim]
        return F.normalize(x) if finish.normalize else x
