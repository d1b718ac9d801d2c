"""Hidden states -> one vector per text: pooling, Dense layers, layer_norm, slice, L2.

Source: pooling modes and order of modules as in sentence-transformers; the Matryoshka recipe
(layer_norm over the full width, slice, L2) as in nomic-embed-text-v1.5's card.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nomicbert.arguments import as_whole
from nomicbert.modeling.context import ForwardContext
from nomicbert.modeling.packing import PackedBatch
from nomicbert.modeling.plain_layers import call, input_dtype, is_plain
from nomicbert.modeling.prepared_weights import PreparedWeights
from nomicbert_kernels import Ops, Plan, PoolMode, Run, Weight, compute_dtype
from nomicbert_kernels.tensors import ONE_TOKEN_MODES


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + exp(-x)) by tanh: torch.sigmoid rounds the last elements of a thread differently."""
    return torch.tanh(x / 2) / 2 + 0.5


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "Identity": lambda x: x,
    "Tanh": torch.tanh,
    "ReLU": F.relu,
    "GELU": F.gelu,
    "Sigmoid": sigmoid,
    "SiLU": lambda x: x * sigmoid(x),
}


@dataclass(frozen=True)
class Finish:
    """Steps after pooling that a call asks for.

    Attributes:
        matryoshka_dim: layer_norm if the checkpoint's recipe has it -> slice -> L2; or None.
        truncate_dim: slice only; or None.
        normalize: L2 as the last step.
    """

    matryoshka_dim: int | None = None
    truncate_dim: int | None = None
    normalize: bool = False


class Pooling(nn.Module):
    """All steps after the encoder: hidden states -> vectors.

    Attributes:
        mode: how a text's hidden states become one vector.
        dense: linear layers after pooling, each with an activation.
        normalize: whether the checkpoint's modules end with L2.
        matryoshka_layer_norm: whether its Matryoshka recipe begins with layer_norm.
    """

    def __init__(
        self,
        width: int,
        mode: PoolMode = "mean",
        dense: tuple[tuple[nn.Linear, str], ...] = (),
        normalize: bool = False,
        matryoshka_layer_norm: bool = False,
    ) -> None:
        """`width` is the encoder's hidden size; each of `dense` is a layer and its activation."""
        super().__init__()
        self.mode = mode
        self.dense = nn.ModuleList(layer for layer, _ in dense)
        self.activations = tuple(activation for _, activation in dense)
        self.normalize = normalize
        self.matryoshka_layer_norm = matryoshka_layer_norm
        self.embedding_dimension = dense[-1][0].out_features if dense else width
        self._prepared = PreparedWeights()

    def check(self, finish: Finish) -> None:
        """Refuse an invalid width.

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

    @property
    def reads_one_token(self) -> bool:
        """Whether only one hidden state per text is used."""
        return self.mode in ONE_TOKEN_MODES

    def rows(self, batch: PackedBatch) -> Tensor | None:
        """(B,) int64: the only token of each text that is used, or None if all are."""
        if not self.reads_one_token or not batch.position_ids.shape[0]:
            return None
        return batch.first_tokens() if self.mode == "cls" else batch.last_tokens()

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
        if self.dense:
            return self.finish(ctx.ops, self.pool(hidden, ctx, rows), finish)
        return self._last(self.pool(hidden, ctx, rows, *self._recipe(finish)), finish)

    def pool(
        self,
        hidden: Tensor,
        ctx: ForwardContext,
        rows: Tensor | None,
        layer_norm: bool = False,
        dim: int | None = None,
        unit: bool = False,
    ) -> Tensor:
        """Pool a batch, then apply layer_norm, slice and L2 as requested: (B, dim) fp32."""
        if rows is not None:
            return pool_rows(ctx.ops, hidden, layer_norm, dim, unit)
        pooled: Tensor = ctx.ops.pool(
            hidden, ctx.batch.cu_seqlens, ctx.plan, self.mode, layer_norm, dim, unit
        )
        return pooled

    def finish(self, ops: Ops, pooled: Tensor, finish: Finish) -> Tensor:
        """Apply all steps after pooling: (B, hidden_size) fp32 -> (B, dim) fp32."""
        x = pooled
        for layer, activation in zip(self._linears(), self.activations, strict=True):
            x = ACTIVATIONS[activation](self._dense(ops, x, layer)).float()
        return self._last(pool_rows(ops, x, *self._recipe(finish)), finish)

    def _dense(self, ops: Ops, x: Tensor, layer: nn.Linear) -> Tensor:
        """Apply a Dense layer without its activation: (B, K) -> (B, N)."""
        if not is_plain(layer):
            self._prepared.forget(layer)
            return call(layer, x, compute_dtype(x.device, input_dtype(layer, x.dtype)))
        dtype = compute_dtype(layer.weight.device, layer.weight.dtype)
        weight = self._prepared.get(
            ops, (id(layer), "linear"), layer.weight, layer.bias, "linear", dtype
        )
        y: Tensor = ops.linear(x.to(weight.dtype), weight)
        return y

    def prepared_weights(self) -> list[Weight]:
        """The weights of the Dense layers prepared so far."""
        return self._prepared.weights()

    def _recipe(self, finish: Finish) -> tuple[bool, int | None, bool]:
        """The arguments layer_norm, dim and L2 of the pooling op."""
        short = finish.matryoshka_dim is not None
        return self.matryoshka_layer_norm and short, finish.matryoshka_dim, self.normalize or short

    def _last(self, x: Tensor, finish: Finish) -> Tensor:
        """Apply truncate_dim and normalize, the steps after the checkpoint's own modules."""
        x = x[:, : finish.truncate_dim]
        return F.normalize(x) if finish.normalize else x

    def _linears(self) -> list[nn.Linear]:
        return list(self.dense)  # type: ignore[arg-type]


def pool_rows(ops: Ops, rows: Tensor, layer_norm: bool, dim: int | None, unit: bool) -> Tensor:
    """Apply layer_norm, slice and L2 to (B, H) pooled rows, by pooling them as one-token texts."""
    texts = rows.shape[0]
    plan = Plan((Run(text=0, token=0, texts=texts, length=1),) if texts else ())
    offsets = torch.arange(texts + 1, dtype=torch.int32, device=rows.device)
    pooled: Tensor = ops.pool(rows, offsets, plan, "cls", layer_norm, dim, unit)
    return pooled
