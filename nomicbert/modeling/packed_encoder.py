"""The packed middle of every model: packed token ids -> packed hidden states.

Where in the flow: `NomicBert.forward` and the heads pad and unpad around it;
`vectors.EmbeddingModel` and streams of texts call `context` and `core` directly.
Source: Nussbaum et al. 2024, arXiv:2402.01613; Devlin et al. 2018, arXiv:1810.04805.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nomicbert.config import EncoderConfig
from nomicbert.modeling.backend_module import BackendModule
from nomicbert.modeling.context import ForwardContext, Hidden
from nomicbert.modeling.embeddings import Embeddings
from nomicbert.modeling.hidden_states import noted
from nomicbert.modeling.layer import Layer
from nomicbert.modeling.packing import PackedBatch
from nomicbert.modeling.plain_layers import refuse_hooks
from nomicbert.modeling.rope import RotaryTables
from nomicbert.modeling.tracing import refuse_jit, refuse_reference
from nomicbert_kernels import Backend, Plan, Rope, values


class PackedEncoder(BackendModule):
    """Embeddings and layers over packed texts.

    Attributes:
        config: sizes and kinds.
        embeddings: token ids -> the first hidden states.
        layers: of attention and MLP.
        rotary: angles, or None for learned positions.
    """

    def __init__(self, config: EncoderConfig, backend: Backend) -> None:
        """Create the modules; their values are set by the model."""
        super().__init__(backend)
        self.config = config
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.num_hidden_layers))
        self.rotary = RotaryTables(config) if config.rotary_dim else None
        self.gradient_checkpointing = False

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: object = None) -> None:
        """In training, keep each layer's input only and compute the layer again going back.

        The keyword is accepted for existing call sites: here torch's newer form always runs.
        """
        self.gradient_checkpointing = True

    def gradient_checkpointing_disable(self) -> None:
        """Keep all that going back needs, which is faster."""
        self.gradient_checkpointing = False

    def encode_packed(
        self, batch: PackedBatch, *, rows: Tensor | None = None, states: list[Tensor] | None = None
    ) -> Tensor:
        """Encode packed texts.

        Args:
            batch: B texts of T tokens.
            rows: (B,) int64, the one token of each text that is wanted of the last layer, or None.
            states: a list that the embeddings' output and each layer's are added to, or None.

        Returns: (T, hidden_size), or (B, hidden_size) with `rows`; in `compute_dtype`.
        Raises: ValueError: a hook on the model itself, which would not run.
        """
        return self.core(self.context(batch), rows, states)

    def core(
        self, ctx: ForwardContext, rows: Tensor | None = None, states: list[Tensor] | None = None
    ) -> Tensor:
        """All that follows planning, for torch.compile(fullgraph=True); see `encode_packed`."""
        refuse_jit()
        refuse_reference(ctx.ops.name)
        x: Hidden = self.embeddings(ctx)
        again = self.gradient_checkpointing and self.training and torch.is_grad_enabled()
        for index, layer in enumerate(self.layers, start=1):
            if states is not None:
                x = noted(states, x)
            only = rows if index == len(self.layers) else None
            x = (
                checkpoint(layer, x, ctx, only, use_reentrant=False)
                if again
                else layer(x, ctx, only)
            )
        if states is not None:
            x = noted(states, x)
        return values(x)

    def plan(self, lengths: Sequence[int]) -> Plan:
        """How the backend walks texts of these lengths."""
        config = self.config
        heads, size = config.num_attention_heads, config.head_dim
        kind = self.device.type
        autocast = torch.is_autocast_enabled(kind)
        dtype = torch.get_autocast_dtype(kind) if autocast else self.compute_dtype
        return self.ops.plan(lengths, heads, size, dtype)

    def context(self, batch: PackedBatch) -> ForwardContext:
        """Plan a forward pass over these texts: how to walk them, and their rotary angles.

        Raises: ValueError: more tokens than learned positions; a hook on the model itself.
        """
        refuse_hooks(self)
        return self._context(batch)

    def _context(self, batch: PackedBatch) -> ForwardContext:
        limit, longest = self.config.max_position_embeddings, max(batch.rope_lengths, default=0)
        if self.rotary is None and longest > limit:
            raise ValueError(
                f"{longest} positions are more than the {limit} that this checkpoint has learned: "
                "truncate the text"
            )
        angles = None if self.rotary is None else self.rotary.table
        rope = angles and angles(batch.rope_lengths, batch.lengths, batch.position_ids)
        return self.planned(batch, self.plan(batch.lengths), rope)

    def planned(self, batch: PackedBatch, plan: Plan, rope: Rope | None) -> ForwardContext:
        """A forward pass over these texts, planned by the caller."""
        return ForwardContext(self.ops, self.compute_dtype, self._prepared, batch, plan, rope)

    @property
    def plain_length(self) -> int:
        """Tokens of the longest text whose positions stand in the table that all texts share."""
        rotary = self.rotary
        return self.config.max_position_embeddings if rotary is None else rotary.plain_length
