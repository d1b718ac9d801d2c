"""The packed middle of every model: packed token ids -> packed hidden states.

Where in the flow: `NomicBert.forward` and the heads pad and unpad around it;
`vectors.EmbeddingModel` and streams of texts call `context` and `core` directly.
Source: Nussbaum et al. 2024, arXiv:2402.01613; Devlin et al. 2018, arXiv:1810.04805.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nomicbert.config import EncoderConfig
from nomicbert.modeling.backend_module import BackendModule
from nomicbert.modeling.bound_layers import BoundLayers, takes
from nomicbert.modeling.context import ForwardContext, Hidden
from nomicbert.modeling.embeddings import Embeddings
from nomicbert.modeling.hidden_states import noted
from nomicbert.modeling.layer import Layer
from nomicbert.modeling.model_config import ModelConfig
from nomicbert.modeling.packing import PackedBatch
from nomicbert.modeling.plain_layers import refuse_hooks
from nomicbert.modeling.rope import RotaryTables
from nomicbert.modeling.tracing import refuse_jit, refuse_reference
from nomicbert.modeling.vocabulary import resize
from nomicbert_kernels import Backend, Plan, Rope, values
from nomicbert_kernels.checks import is_rows


class PackedEncoder(BackendModule):
    """Embeddings and layers over packed texts.

    Attributes:
        config: sizes and kinds.
        embeddings: token ids -> the first hidden states.
        layers: of attention and MLP.
        rotary: angles, or None for learned positions.
        gradient_checkpointing: whether layers are computed again going back, in training; of
            `checkpoint_every` layers the first one.
    """

    def __init__(self, config: EncoderConfig, backend: Backend) -> None:
        """Create the modules; their values are set by the model."""
        super().__init__(backend)
        self.config = ModelConfig.of(config)
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.num_hidden_layers))
        self.rotary = RotaryTables(config) if config.rotary_dim else None
        self.gradient_checkpointing = False
        self.checkpoint_every = 1
        self._bound = BoundLayers()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over the state of another model, as copy.copy does, with a configuration apart."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.config = ModelConfig.of(self.config)

    def get_input_embeddings(self) -> nn.Embedding:
        """The word embedding table."""
        return self.embeddings.word

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the word embedding table; the vocabulary may have another size."""
        if value.embedding_dim != self.config.hidden_size:
            raise ValueError(
                f"the table must be {self.config.hidden_size} wide, not {value.embedding_dim}"
            )
        self.embeddings.word = value
        rows = value.num_embeddings
        # in `source` too: tensors with its number of rows would pass as an unpadded table
        source = {**self.config.source, "vocab_size": rows}
        self.config = replace(self.config, vocab_size=rows, source=source)

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
    ) -> nn.Embedding:
        """Cut the word embedding table to `new_num_tokens` rows, or add rows to be trained.

        Args:
            new_num_tokens: rows of the table, at least 1; None keeps the number of rows.
            pad_to_multiple_of: round the number of rows up to a multiple of this.
            mean_resizing: draw new rows from a normal distribution with the mean of the old ones
                and 1e-9 times their covariance; False: with mean 0 and `initializer_range`.

        Returns: the table, the same module as before, (rows, hidden_size). A padding row that was
            cut off is no longer one.
        Raises: TypeError, ValueError: sizes that are not whole numbers of at least 1; a table that
            was replaced by another kind of module.
        """
        table, config = self.embeddings.word, self.config
        padded = getattr(table, "padding_idx", None)
        changed = resize(
            table, new_num_tokens, pad_to_multiple_of, config.initializer_range, mean_resizing
        )
        if changed:
            if padded is not None and table.padding_idx is None:
                config.pad_token_id = None  # type: ignore[assignment, misc]
            self.set_input_embeddings(table)
        return table

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
        bound = self._bound.get(self.layers, x, ctx)
        if rows is not None and bound is not None:
            is_rows(rows, ctx.batch.cu_seqlens)
        again = self.gradient_checkpointing and self.training and torch.is_grad_enabled()
        for index, layer in enumerate(self.layers, start=1):
            if states is not None:
                x = noted(states, x)
            only = rows if index == len(self.layers) else None
            weights = None if bound is None else bound[index - 1]
            if weights is not None and takes(x, ctx.dtype):
                assert ctx.ops.layer is not None
                x = ctx.ops.layer(x, weights, ctx.batch.cu_seqlens, ctx.plan, ctx.rope, only)
            elif bound is not None:  # hooks and other modules get a tensor
                x = layer(values(x), ctx, only)
            elif again and (index - 1) % self.checkpoint_every == 0:
                x = checkpoint(layer, x, ctx, only, use_reentrant=False)
            else:
                x = layer(x, ctx, only)
        if states is not None:
            x = noted(states, x)
        return values(x)

    def _drop_prepared(self) -> None:
        super()._drop_prepared()
        self._bound.clear()

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
