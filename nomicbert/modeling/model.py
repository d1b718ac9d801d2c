"""NomicBert: the encoder, in place of AutoModel for NomicBERT and BERT checkpoints.

Flow: padded ids -> packing -> the packed encoder -> padded hidden states.
Source: Nussbaum et al. 2024, arXiv:2402.01613; Devlin et al. 2018, arXiv:1810.04805.
"""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from nomicbert.config import EncoderConfig
from nomicbert.loading import pretrained
from nomicbert.loading.folder import CheckpointFolder
from nomicbert.loading.given_config import GivenConfig
from nomicbert.loading.keywords import check_saving, refuse_others
from nomicbert.loading.model_card import Card
from nomicbert.loading.publishing import PublishedModule
from nomicbert.modeling.call_types import EncoderCall
from nomicbert.modeling.cards import encoder_card
from nomicbert.modeling.hidden_states import PaddedStates
from nomicbert.modeling.model_config import ModelConfig
from nomicbert.modeling.output import Defaults, EncoderOutput, Value
from nomicbert.modeling.packed_encoder import PackedEncoder
from nomicbert.modeling.packing import PackedBatch, at_rows, tokens_of, unpad
from nomicbert.modeling.tracing import refuse_tracing
from nomicbert.modeling.training_tools import TrainedModule
from nomicbert_kernels import Backend

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from nomicbert.loading.keywords import EncoderOffKeywords, SaveKeywords


class NomicBert(PackedEncoder, TrainedModule, PublishedModule):
    """An encoder for NomicBERT and BERT checkpoints.

    The ops read the parameters of plain nn.Linear, nn.Embedding and nn.LayerNorm modules. One that
    was replaced, wrapped or hooked is called instead, by torch and without quantisation, whatever
    the backend: LoRA adapters train, hooks run. A text's bits may then depend on its batch.

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
        super().__init__(config, backend)
        width = config.hidden_size
        self.pooler = nn.Linear(width, width) if add_pooling_layer else None
        self._defaults = (self.config.source, Defaults.read(config.source))
        self._initialise()

    @property
    def defaults(self) -> Defaults:
        """What a call returns if it does not say; as the configuration says now."""
        source = self.config.source
        if self._defaults[0] is not source:
            self._defaults = (source, Defaults.read(source))
        return self._defaults[1]

    def _config(self) -> ModelConfig:
        return self.config

    def _checkpoint(self, every: int) -> None:
        self.gradient_checkpointing, self.checkpoint_every = every > 0, max(every, 1)

    def _initialise(self) -> None:
        """The distribution that BERT and NomicBERT are trained from."""
        for name, parameter in self.named_parameters():
            pretrained.initialise(name, parameter, self.config.initializer_range)
        word = self.embeddings.word
        if word.padding_idx is not None:
            with torch.no_grad():
                word.weight[word.padding_idx].zero_()

    @classmethod
    def from_pretrained(
        cls,
        path_or_repo_id: str | os.PathLike[str] | CheckpointFolder | None,
        *,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        subfolder: str = "",
        force_download: bool = False,
        dtype: torch.dtype | str = torch.float32,
        device: torch.device | str | None = None,
        backend: Backend = "auto",
        rotary_scaling_factor: float | None = None,
        add_pooling_layer: bool = False,
        strict: bool = True,
        config: GivenConfig | None = None,
        state_dict: Mapping[str, Tensor] | None = None,
        hidden_dropout_prob: float | None = None,
        attention_probs_dropout_prob: float | None = None,
        use_safetensors: bool | None = None,
        torch_dtype: torch.dtype | str | None = None,
        device_map: torch.device | str | None = None,
        attn_implementation: str | None = None,
        low_cpu_mem_usage: bool | None = None,
        weights_only: bool | None = None,
        trust_remote_code: bool | None = None,
        safe_serialization: bool | None = None,
        **others: "Unpack[EncoderOffKeywords]",
    ) -> "NomicBert":
        """Load a checkpoint; the model comes back in eval mode.

        Args:
            path_or_repo_id: a local folder, what `read_folder` has read of one, or a repository of
                the hub such as "nomic-ai/nomic-embed-text-v1.5"; None with config and state_dict.
            revision: branch, tag or commit of the repository.
            cache_dir: where downloads are kept, in place of Hugging Face's default.
            token: for private repositories; True takes the stored one.
            local_files_only: never reach for the network.
            subfolder: folder of the checkpoint within the path or repository.
            force_download: fetch the files of a repository again.
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
            config: in place of the folder's config.json: an EncoderConfig, a configuration of
                transformers, a dict, or the path of a config.json or of its folder.
            state_dict: tensors by name in place of the folder's weights, as on the hub or as
                `state_dict()` of such a model; they are copied.
            hidden_dropout_prob: in training, in place of the checkpoint's.
            attention_probs_dropout_prob: the same of attention.
            use_safetensors: True never reads a .bin, False nothing else; None: safetensors first.
            torch_dtype: old name of `dtype`.
            device_map: a device name, with the meaning of `device`; no other form is supported.
            attn_implementation: one of transformers' names, accepted for existing call sites: the
                backend computes attention.
            low_cpu_mem_usage: accepted for existing call sites; no parameter is ever made twice.
            weights_only: accepted if not False; nothing but tensors is ever unpickled.
            trust_remote_code: accepted for existing call sites; code of a checkpoint is never run.
            safe_serialization: accepted for existing call sites; safetensors come first anyway.
            **others: keywords of transformers that are accepted if they switch nothing on, such as
                `variant=None`; of any other an error names the nearest known one.

        Raises:
            HubError: folder or repository not found or not reachable.
            ConfigError, CheckpointError: config.json or weights missing, damaged or unsupported.
            TypeError, ValueError: unknown keyword, dtype, device or backend.
            BackendError: the backend cannot run here.
        """
        refuse_others(others, cls.from_pretrained)

        def build(config: EncoderConfig, _: object) -> "tuple[NomicBert, tuple[str, ...]]":
            return cls(config, backend=backend, add_pooling_layer=add_pooling_layer), ()

        return pretrained.load(
            build,
            path_or_repo_id,
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            local_files_only=local_files_only,
            subfolder=subfolder,
            force_download=force_download,
            dtype=dtype,
            device=device,
            backend=backend,
            rotary_scaling_factor=rotary_scaling_factor,
            strict=strict,
            config=config,
            state_dict=state_dict,
            hidden_dropout_prob=hidden_dropout_prob,
            attention_probs_dropout_prob=attention_probs_dropout_prob,
            use_safetensors=use_safetensors,
            torch_dtype=torch_dtype,
            device_map=device_map,
            attn_implementation=attn_implementation,
            low_cpu_mem_usage=low_cpu_mem_usage,
            weights_only=weights_only,
        )

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        *,
        state_dict: Mapping[str, Tensor] | None = None,
        is_main_process: bool = True,
        **others: "Unpack[SaveKeywords]",
    ) -> None:
        """Write config.json and model.safetensors as the hub has them, for any loader of such.

        Args:
            folder: may be the one that the model was loaded from.
            state_dict: tensors in place of the parameters, under the model's names or as on the
                hub.
            is_main_process: False writes nothing: of several processes one does.
            **others: `safe_serialization`, `push_to_hub`, `max_shard_size` and `variant` for
                existing call sites: one file is written, as safetensors, in that folder only.

        Raises: TypeError: unknown keyword. ValueError: one that asks for something else.
        """
        check_saving(others, self.get_memory_footprint(), self.save_pretrained)
        if is_main_process:
            with self._carded(folder):
                self.save_files(folder, state_dict)

    def save_files(
        self, folder: str | os.PathLike[str], state_dict: Mapping[str, Tensor] | None = None
    ) -> None:
        """All that `save_pretrained` writes but the card."""
        pretrained.save(folder, self.config, self, state_dict=state_dict)

    def _card(self) -> Card:
        count = sum(parameter.numel() for parameter in self.parameters())
        return encoder_card(self.config, count, str(self.dtype))

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> EncoderOutput | tuple[Value, ...]:
        """Encode a padded batch.

        Args:
            input_ids: (batch, seq_len) int, padded on either side.
            attention_mask: (batch, seq_len), 1 keeps a token, 0 drops it; None keeps all.
            token_type_ids: (batch, seq_len) int; None means type 0.
            position_ids: (batch, seq_len) int in place of the column numbers.
            inputs_embeds: (batch, seq_len, hidden_size) in place of input_ids.
            output_attentions: not supported; None or False.
            output_hidden_states: also return the embeddings' output and each layer's; None takes
                config.json's value, or False.
            return_dict: False returns a plain tuple; None takes config.json's value, or True.

        Returns: hidden states (batch, seq_len, hidden_size) in the model's dtype; zeros where
            attention_mask is 0. `pooler_output`, of the first kept token of each row and 0 for a
            row without any, is in autocast's dtype if that is on.
        Raises: ValueError: shapes that differ, a mask of other values, an id outside its table,
            more tokens than learned positions, attention maps asked for. TypeError: a flag that is
            not a bool. BackendError: within a tracer that would record the lengths.
        """
        refuse_tracing(input_ids, attention_mask, inputs_embeds, position_ids)
        wanted = self.defaults.asked(output_attentions, output_hidden_states, return_dict)
        tokens = tokens_of(input_ids, inputs_embeds)
        batch, padding = unpad(tokens, attention_mask, token_type_ids, position_ids)
        states = PaddedStates(padding, self.dtype) if wanted.output_hidden_states else None
        packed = self.core(self._context(batch), None, states)
        last = states[-1] if states else padding.pad(packed).to(self.dtype)
        pooled = None if self.pooler is None else self._pooled(packed, batch, self.pooler)
        output = EncoderOutput(last, pooled, None if states is None else tuple(states))
        return output if wanted.return_dict else output.to_tuple()

    def _pooled(self, packed: Tensor, batch: PackedBatch, pooler: nn.Linear) -> Tensor:
        """tanh(dense(first token)) of each text, (B, hidden_size); zeros for an empty text."""
        filled, kept = batch.without_empty()
        x = self.linear(packed[filled.first_tokens()], pooler).tanh().to(self.result_dtype)
        return x if filled is batch else at_rows(x, kept, len(batch.lengths))
