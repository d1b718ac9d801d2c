"""Base class of the heads: the encoder, loading and saving, packed tokens in, logits out."""

import os
from collections.abc import Collection
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nomicbert.arguments import refuse_unknown
from nomicbert.config import EncoderConfig
from nomicbert.loading import pretrained
from nomicbert.loading.folder import CheckpointFolder
from nomicbert.loading.model_card import Card
from nomicbert.loading.publishing import PublishedModule
from nomicbert.loading.tensor_files import TensorFiles
from nomicbert.modeling.call_types import LabelledCall
from nomicbert.modeling.cards import head_card
from nomicbert.modeling.heads import losses
from nomicbert.modeling.heads.labels import Labels
from nomicbert.modeling.heads.stored import new_parameters
from nomicbert.modeling.hidden_states import PaddedStates
from nomicbert.modeling.model import NomicBert
from nomicbert.modeling.output import Defaults, LogitsOutput, Value
from nomicbert.modeling.packing import PackedBatch, Padding, tokens_of, unpad
from nomicbert.modeling.tracing import refuse_tracing
from nomicbert_kernels import Backend

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from nomicbert.loading.pretrained import LoadKeywords

Self = TypeVar("Self", bound="Head")


class Head(PublishedModule):
    """Base class of the heads: an encoder, and how both are loaded, saved and called.

    Attributes:
        encoder: the model under the head.
        labels: meaning of the columns of the logits.
    """

    task: str
    pooled = False

    def __init__(
        self, config: EncoderConfig, *, num_labels: int | None = None, backend: Backend = "auto"
    ) -> None:
        """Build with random weights; `from_pretrained` loads a checkpoint.

        Args:
            config: of the encoder.
            num_labels: columns of the logits; None takes the value of config.json.
            backend: "auto", "reference", "torch", "int8", "triton", "fp8" or "invariant".
        """
        super().__init__()
        self.encoder = NomicBert(config, backend=backend, add_pooling_layer=self.pooled)
        self.labels = Labels.read(config.source).counting(num_labels)

    def _initialise(self) -> None:
        for name, parameter in self.named_parameters():
            if not name.startswith("encoder."):
                pretrained.initialise(name, parameter, self.config.initializer_range)

    @classmethod
    def from_pretrained(
        cls: type[Self],
        path_or_repo_id: str | os.PathLike[str] | CheckpointFolder,
        *,
        num_labels: int | None = None,
        problem_type: str | None = None,
        ignore_mismatched_sizes: bool = False,
        **keywords: "Unpack[LoadKeywords]",
    ) -> Self:
        """Load a checkpoint with its head; the model comes back in eval mode.

        Args:
            path_or_repo_id: a local folder, what `read_folder` has read of one, or a repository of
                the hub.
            num_labels: columns of the logits. If given, a checkpoint without such a head gets a
                new, untrained one; otherwise it is refused.
            problem_type: "regression", "single_label_classification" or
                "multi_label_classification" in place of the checkpoint's own.
            ignore_mismatched_sizes: replace a head with another `num_labels` by a new one.
            **keywords: those of `NomicBert.from_pretrained` but add_pooling_layer.

        Raises:
            CheckpointError: no such head (the error lists those that exist), or as
                `NomicBert.from_pretrained`.
            TypeError: unknown keyword. ValueError, ConfigError: invalid labels.
        """
        defaults = dict(NomicBert.from_pretrained.__kwdefaults__ or {})
        del defaults["add_pooling_layer"]
        unknown = [name for name in keywords if name not in defaults]
        refuse_unknown(unknown, cls.from_pretrained, NomicBert.from_pretrained)

        def build(config: EncoderConfig, files: TensorFiles) -> tuple[Self, Collection[str]]:
            model = cls._empty(config, files, num_labels, keywords.get("backend", "auto"))
            if problem_type is not None:
                model.labels = model.labels.meant_as(problem_type)
            return model, new_parameters(
                model, cls.task, files, config, num_labels, ignore_mismatched_sizes
            )

        return pretrained.load(build, path_or_repo_id, **keywords)

    @classmethod
    def _empty(
        cls: type[Self],
        config: EncoderConfig,
        files: TensorFiles,
        count: int | None,
        backend: Backend,
    ) -> Self:
        return cls(config, num_labels=count, backend=backend)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write config.json and model.safetensors as transformers has them for this head.

        A folder without a README.md gets a model card.
        """
        with self._carded(folder):
            self.save_files(folder)

    def save_files(self, folder: str | os.PathLike[str]) -> None:
        """All that `save_pretrained` writes but the card."""
        pretrained.save(folder, self.config, self, self.settings())

    def _card(self) -> Card:
        count = sum(parameter.numel() for parameter in self.parameters())
        labels = self.labels.names if self.task.endswith("Classification") else ()
        kind = type(self).__name__
        return head_card(self.config, count, str(self.dtype), kind, self.task, labels)

    def settings(self) -> dict[str, object]:
        """Keys of config.json for this head."""
        family = {"nomic_bert": "NomicBert", "bert": "Bert"}[self.config.model_type]
        return {"architectures": [f"{family}For{self.task}"], **self.labels.as_config()}

    @property
    def config(self) -> EncoderConfig:
        """Of the encoder."""
        return self.encoder.config

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.encoder.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the parameters."""
        return self.encoder.dtype

    def get_input_embeddings(self) -> nn.Embedding:
        """The word embedding table."""
        return self.encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the word embedding table; the vocabulary may have another size."""
        self.encoder.set_input_embeddings(value)
        self._follow(value.num_embeddings, mean_resizing=True)

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
    ) -> nn.Embedding:
        """As `NomicBert.resize_token_embeddings`."""
        table = self.encoder.resize_token_embeddings(
            new_num_tokens, pad_to_multiple_of, mean_resizing
        )
        self._follow(table.num_embeddings, mean_resizing)
        return table

    def _follow(self, count: int, mean_resizing: bool) -> None:
        """Give the head's own parameters a row for each of `count` words, if they have such."""

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: object = None) -> None:
        """As `NomicBert.gradient_checkpointing_enable`."""
        self.encoder.gradient_checkpointing_enable()

    def gradient_checkpointing_disable(self) -> None:
        """As `NomicBert.gradient_checkpointing_disable`."""
        self.encoder.gradient_checkpointing_disable()

    def packed_logits(self, batch: PackedBatch, states: list[Tensor] | None = None) -> Tensor:
        """Logits of packed texts: (B, N) if the head is per text, (T, N) if it is per token.

        Args:
            batch: B texts of T tokens.
            states: list to append the encoder's hidden states to, or None.
        """
        raise NotImplementedError

    def _dropout(self, x: Tensor) -> Tensor:
        own = self.labels.dropout_p
        return F.dropout(x, self.config.hidden_dropout_prob if own is None else own, self.training)

    def _run(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        token_type_ids: Tensor | None,
        position_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        wanted: Defaults,
    ) -> tuple[Tensor, PackedBatch, Padding, tuple[Tensor, ...] | None]:
        """Packed logits, the batch, its padding, and the hidden states on request."""
        tokens = tokens_of(input_ids, inputs_embeds)
        batch, padding = unpad(tokens, attention_mask, token_type_ids, position_ids)
        states = PaddedStates(padding, self.dtype) if wanted.output_hidden_states else None
        logits = self.packed_logits(batch, states).to(self.encoder.result_dtype)
        return logits, batch, padding, None if states is None else tuple(states)


class LabelledHead(Head):
    """A head with labels as targets."""

    if TYPE_CHECKING:
        __call__: LabelledCall

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> LogitsOutput | tuple[Value, ...]:
        """Logits of a padded batch, and the loss if labels are given.

        Args:
            input_ids: (batch, seq_len) int, padded on either side.
            attention_mask: (batch, seq_len), 1 keeps a token, 0 drops it; None keeps all.
            token_type_ids: (batch, seq_len) int; None means type 0.
            position_ids: (batch, seq_len) int in place of the column numbers.
            inputs_embeds: (batch, seq_len, hidden_size) in place of input_ids.
            labels: per token: (batch, seq_len) int, -100 to ignore, also where attention_mask is 0.
                Per text: (batch,) int, or float depending on the problem type.
            output_attentions: not supported; None or False.
            output_hidden_states: also return the embeddings' output and each layer's; None takes
                config.json's value, or False.
            return_dict: False returns a plain tuple; None takes config.json's value, or True.

        Returns: logits in the model's dtype, or in autocast's if that is on; the loss in fp32.
        Raises: ValueError: labels of a wrong shape or out of range, a label for a text without
            tokens; errors of `NomicBert.forward`.
        """
        refuse_tracing(input_ids, attention_mask, inputs_embeds, position_ids)
        wanted = self.encoder.defaults.asked(output_attentions, output_hidden_states, return_dict)
        logits, batch, padding, hidden = self._run(
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds, wanted
        )
        loss = None if labels is None else self.loss(logits, labels, batch, padding)
        output = LogitsOutput(loss, self.placed(logits, padding), hidden)
        return output if wanted.return_dict else output.to_tuple()

    def loss(self, logits: Tensor, labels: Tensor, batch: PackedBatch, padding: Padding) -> Tensor:
        """() fp32, from packed logits and the labels of `forward`."""
        return losses.tokens(logits, labels, padding)

    def placed(self, logits: Tensor, padding: Padding) -> Tensor:
        """Packed logits in the layout that `forward` returns."""
        return padding.pad(logits)
