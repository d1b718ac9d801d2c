"""NomicBert: the encoder, in place of AutoModel for NomicBERT and BERT checkpoints.

Flow: padded ids -> packing -> embeddings -> layers -> padded hidden states. The packed middle,
`context` and `core`, is what `vectors.EmbeddingModel` calls directly.
Source: Nussbaum et al. 2024, arXiv:2402.01613; Devlin et al. 2018, arXiv:1810.04805.
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nomicbert.arguments import as_whole, refuse_unknown
from nomicbert.config import EncoderConfig
from nomicbert.loading import pretrained
from nomicbert.loading.folder import CheckpointFolder
from nomicbert.modeling.backend_module import BackendModule
from nomicbert.modeling.call_types import EncoderCall, NoKeywords
from nomicbert.modeling.context import ForwardContext, Hidden
from nomicbert.modeling.embeddings import Embeddings
from nomicbert.modeling.layer import Layer
from nomicbert.modeling.output import EncoderOutput, Value
from nomicbert.modeling.packing import PackedBatch, tokens_of, unpad
from nomicbert.modeling.rope import RotaryTables
from nomicbert_kernels import Backend, Plan, Rope, values

if TYPE_CHECKING:
    from typing_extensions import Unpack


class NomicBert(BackendModule):
    """An encoder for NomicBERT and BERT checkpoints.

    Its nn.Linear modules only store parameters; the ops read them directly. Forward hooks on them,
    or replacement modules, have no effect.

    >>> from nomicbert import EncoderConfig, NomicBert
    >>> config = EncoderConfig("bert", 100, 32, 2, 4, 64, 2, 512, 1e-12)
    >>> model = NomicBert(config).eval()
    >>> model(torch.tensor([[2, 7, 9]])).last_hidden_state.shape
    torch.Size([1, 3, 32])
    """

    if TYPE_CHECKING:
        __call__: EncoderCall

    def __init__(
        self, config: EncoderConfig, *, backend: Backend = "auto", add_pooling_layer: bool = False
    ) -> None:
        """Build with random weights; `from_pretrained` loads a checkpoint.

        Args:
            config: sizes and kinds.
            backend: as for `from_pretrained`; chosen at the first forward pass.
            add_pooling_layer: also compute tanh(dense(first token)) as `pooler_output`.
        """
        super().__init__(backend)
        self.config = config
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.num_hidden_layers))
        width = config.hidden_size
        self.pooler = nn.Linear(width, width) if add_pooling_layer else None
        self.rotary = RotaryTables(config) if config.rotary_dim else None
        self.gradient_checkpointing = False
        self._initialise()

    def _initialise(self) -> None:
        """The distribution that BERT and NomicBERT are trained from."""
        for name, parameter in self.named_parameters():
            pretrained.initialise(name, parameter, self.config.initializer_range)

    @classmethod
    def from_pretrained(
        cls,
        path_or_repo_id: str | os.PathLike[str] | CheckpointFolder,
        *,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        dtype: torch.dtype | str = torch.float32,
        device: torch.device | str | None = None,
        backend: Backend = "auto",
        rotary_scaling_factor: float | None = None,
        add_pooling_layer: bool = False,
        strict: bool = True,
        torch_dtype: torch.dtype | str | None = None,
        device_map: torch.device | str | None = None,
        trust_remote_code: bool | None = None,
        safe_serialization: bool | None = None,
        **unknown: "Unpack[NoKeywords]",
    ) -> "NomicBert":
        """Load a checkpoint; the model comes back in eval mode.

        Args:
            path_or_repo_id: a local folder, what `read_folder` has read of one, or a repository of
                the hub such as "nomic-ai/nomic-embed-text-v1.5".
            revision: branch, tag or commit of the repository.
            cache_dir: where downloads are kept, in place of Hugging Face's default.
            token: for private repositories; True takes the stored one.
            local_files_only: never reach for the network.
            dtype: of the parameters; "auto": the checkpoint's, "fastest": the device's fastest. A
                CPU computes float16 in float32, and bfloat16 if it lacks the instructions.
            device: where the parameters go; default the CPU.
            backend: "auto", "reference", "torch", "int8", "triton", "fp8" or "invariant"; see
                docs/backends.md. "int8" (CPUs with VNNI or AMX) and "fp8" (GPUs from sm_89) run
                linear layers in 8 bits: faster, less exact. "invariant" is "triton" with
                batch-independent launch settings: slower, bit-identical vectors in any batch.
            rotary_scaling_factor: alpha of dynamic NTK scaling in place of the stored one; 0: off.
            add_pooling_layer: also load the tanh pooler and return `pooler_output`.
            strict: False lets tensors that no parameter wants pass; a missing one is an error.
            torch_dtype: old name of `dtype`.
            device_map: a device name, with the meaning of `device`; no other form is supported.
            trust_remote_code: accepted for existing call sites; code of a checkpoint is never run.
            safe_serialization: accepted for existing call sites; safetensors come first anyway.
            **unknown: none; an error names the nearest known keyword.

        Raises:
            HubError: folder or repository not found or not reachable.
            ConfigError, CheckpointError: config.json or weights missing, damaged or unsupported.
            TypeError, ValueError: unknown keyword, dtype, device or backend.
            BackendError: the backend cannot run here.
        """
        refuse_unknown(unknown, cls.from_pretrained)

        def build(config: EncoderConfig, _: object) -> "tuple[NomicBert, tuple[str, ...]]":
            return cls(config, backend=backend, add_pooling_layer=add_pooling_layer), ()

        return pretrained.load(
            build,
            path_or_repo_id,
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            local_files_only=local_files_only,
            dtype=dtype,
            device=device,
            backend=backend,
            rotary_scaling_factor=rotary_scaling_factor,
            strict=strict,
            torch_dtype=torch_dtype,
            device_map=device_map,
        )

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write config.json and model.safetensors as the hub has them, for any loader of such.

        The folder may be the one that the model was loaded from.
        """
        pretrained.save(folder, self.config, self)

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
        self.config = replace(self.config, vocab_size=value.num_embeddings)

    def resize_token_embeddings(self, new_num_tokens: int) -> nn.Embedding:
        """Cut the word embedding table to so many rows, or add rows that are yet to be trained.

        Args:
            new_num_tokens: rows of the new table, at least 1.

        Returns: the new table, (new_num_tokens, hidden_size).
        """
        old = self.embeddings.word.weight
        if as_whole("new_num_tokens", new_num_tokens) < 1:
            raise ValueError(f"new_num_tokens must be at least 1, not {new_num_tokens}")
        table = nn.Embedding(new_num_tokens, old.shape[1], dtype=old.dtype, device=old.device)
        pretrained.initialise("word.weight", table.weight, self.config.initializer_range)
        kept = min(new_num_tokens, old.shape[0])
        with torch.no_grad():
            table.weight[:kept] = old[:kept]
        table.weight.requires_grad_(old.requires_grad)
        self.set_input_embeddings(table)
        return table

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: object = None) -> None:
        """In training, keep each layer's input only and compute the layer again going back.

        The keyword is accepted for existing call sites: here torch's newer form always runs.
        """
        self.gradient_checkpointing = True

    def gradient_checkpointing_disable(self) -> None:
        """Keep all that going back needs, which is faster."""
        self.gradient_checkpointing = False

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool = False,
        return_dict: bool = True,
    ) -> EncoderOutput | tuple[Value, ...]:
        """Encode a padded batch.

        Args:
            input_ids: (batch, seq_len) int, padded on either side.
            attention_mask: (batch, seq_len), 1 keeps a token, 0 drops it; None keeps all.
            token_type_ids: (batch, seq_len) int; None means type 0.
            position_ids: (batch, seq_len) int in place of the column numbers.
            inputs_embeds: (batch, seq_len, hidden_size) in place of input_ids.
            output_hidden_states: also return the embeddings' output and each layer's.
            return_dict: False returns a plain tuple.

        Returns: hidden states (batch, seq_len, hidden_size) in the model's dtype; zeros where
            attention_mask is 0.
        Raises: ValueError: shapes that differ, a mask of other values, an id outside its table,
            more tokens than learned positions.
        """
        tokens = tokens_of(input_ids, inputs_embeds)
        batch, padding = unpad(tokens, attention_mask, token_type_ids, position_ids)
        states: list[Tensor] | None = [] if output_hidden_states else None
        last = padding.pad(self.encode_packed(batch, states=states))
        pooled = None
        if self.pooler is not None:
            pooled = self.linear(last[:, 0], self.pooler).tanh().to(self.dtype)
        hidden = states and tuple(padding.pad(x).to(self.dtype) for x in states)
        output = EncoderOutput(last.to(self.dtype), pooled, hidden or None)
        return output if return_dict else output.to_tuple()

    def encode_packed(
        self, batch: PackedBatch, *, rows: Tensor | None = None, states: list[Tensor] | None = None
    ) -> Tensor:
        """Encode packed texts.

        Args:
            batch: B texts of T tokens.
            rows: (B,) int64, the one token of each text that is wanted of the last layer, or None.
            states: a list that the embeddings' output and each layer's are added to, or None.

        Returns: (T, hidden_size), or (B, hidden_size) with `rows`; in `compute_dtype`.
        """
        return self.core(self.context(batch), rows, states)

    def core(
        self, ctx: ForwardContext, rows: Tensor | None = None, states: list[Tensor] | None = None
    ) -> Tensor:
        """All that follows planning, for torch.compile(fullgraph=True); see `encode_packed`."""
        x: Hidden = self.embeddings(ctx)
        again = self.gradient_checkpointing and self.training and torch.is_grad_enabled()
        for index, layer in enumerate(self.layers, start=1):
            if states is not None:
                states.append(values(x))
            only = rows if index == len(self.layers) else None
            x = (
                checkpoint(layer, x, ctx, only, use_reentrant=False)
                if again
                else layer(x, ctx, only)
            )
        if states is not None:
            states.append(values(x))
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
        """Plan a forward pass over these texts: how to walk them, and their rotary angles."""
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
