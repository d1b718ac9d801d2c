"""Base class of the heads: the encoder, loading and saving, packed tokens in, logits out."""

import os
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nomicbert.config import EncoderConfig
from nomicbert.loading import pretrained
from nomicbert.loading.folder import CheckpointFolder
from nomicbert.loading.keywords import check_saving, refuse_others
from nomicbert.loading.model_card import Card
from nomicbert.loading.publishing import PublishedModule
from nomicbert.loading.tensor_files import TensorFiles
from nomicbert.modeling.cards import head_card
from nomicbert.modeling.heads.stored import new_parameters
from nomicbert.modeling.hidden_states import PaddedStates
from nomicbert.modeling.labels import Labels, asked_names, stated_count
from nomicbert.modeling.model import NomicBert
from nomicbert.modeling.model_config import ModelConfig
from nomicbert.modeling.output import Defaults
from nomicbert.modeling.packing import PackedBatch, Padding, tokens_of, unpad
from nomicbert.modeling.training_tools import TrainedModule
from nomicbert_kernels import Backend

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from nomicbert.loading.keywords import SaveKeywords
    from nomicbert.loading.pretrained import HeadKeywords

Self = TypeVar("Self", bound="Head")


class Head(TrainedModule, PublishedModule):
    """Base class of the heads: an encoder, and how both are loaded, saved and called.

    Attributes:
        encoder: the model under the head.
        label_keywords: those of `from_pretrained` about labels that have an effect.
    """

    base_model_prefix = "encoder"
    task: str
    pooled = False
    label_keywords: tuple[str, ...] = ()
    _labels: tuple[Mapping[str, object], Labels] | None = None

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
        path_or_repo_id: str | os.PathLike[str] | CheckpointFolder | None,
        *,
        num_labels: int | None = None,
        id2label: Mapping[int, str] | None = None,
        label2id: Mapping[str, int] | None = None,
        problem_type: str | None = None,
        classifier_dropout: float | None = None,
        ignore_mismatched_sizes: bool = False,
        **keywords: "Unpack[HeadKeywords]",
    ) -> Self:
        """Load a checkpoint with its head; the model comes back in eval mode.

        Args:
            path_or_repo_id: as for `NomicBert.from_pretrained`.
            num_labels: columns of the logits. If given, a checkpoint without such a head gets a
                new, untrained one; otherwise it is refused. The names of the labels say it too, and
                so does `config`.
            id2label: names of the labels, {0: name, ...}, in place of the checkpoint's.
            label2id: the same, {name: 0, ...}.
            problem_type: "regression", "single_label_classification" or
                "multi_label_classification" in place of the checkpoint's own.
            classifier_dropout: before the classifier, in place of the checkpoint's.
            ignore_mismatched_sizes: replace a head with another `num_labels` by a new one.
            **keywords: those of `NomicBert.from_pretrained` but add_pooling_layer.

        Raises:
            CheckpointError: no such head (the error lists those that exist), or as
                `NomicBert.from_pretrained`.
            TypeError: unknown keyword. ValueError, ConfigError: invalid labels, or labels of a head
                that has none.
        """
        known = dict(NomicBert.from_pretrained.__kwdefaults__ or {})
        del known["add_pooling_layer"]
        others = {name: value for name, value in keywords.items() if name not in known}
        refuse_others(others, cls.from_pretrained, NomicBert.from_pretrained)
        asked = {
            "id2label": id2label,
            "label2id": label2id,
            "problem_type": problem_type,
            "classifier_dropout": classifier_dropout,
        }
        for name, value in asked.items():
            if value is not None and name not in cls.label_keywords:
                raise ValueError(f"{name} has no effect on {cls.__name__}: leave it out")
        names = asked_names(num_labels, id2label, label2id)
        count = num_labels if names is None else len(names)
        given = keywords.get("config")

        def build(config: EncoderConfig, files: TensorFiles) -> tuple[Self, Collection[str]]:
            wanted = count
            if wanted is None and given is not None and "id2label" in cls.label_keywords:
                wanted = stated_count(config.source)
            model = cls._empty(config, files, wanted, keywords.get("backend", "auto"))
            labels = model.labels.named(names).dropping(classifier_dropout)
            model.labels = labels if problem_type is None else labels.meant_as(problem_type)
            return model, new_parameters(
                model, cls.task, files, config, wanted, ignore_mismatched_sizes
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

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        *,
        state_dict: Mapping[str, Tensor] | None = None,
        is_main_process: bool = True,
        **others: "Unpack[SaveKeywords]",
    ) -> None:
        """Write config.json and model.safetensors as transformers has them for this head.

        Arguments and errors are those of `NomicBert.save_pretrained`.
        """
        check_saving(others, self.get_memory_footprint(), self.save_pretrained)
        if is_main_process:
            with self._carded(folder):
                self.save_files(folder, state_dict)

    def save_files(
        self, folder: str | os.PathLike[str], state_dict: Mapping[str, Tensor] | None = None
    ) -> None:
        """All that `save_pretrained` writes but the card."""
        settings, more = self.settings(), self._further_tensors()
        pretrained.save(folder, self.config, self, settings, state_dict=state_dict, more=more)

    def _further_tensors(self) -> dict[str, Tensor]:
        """Tensors to be saved that no parameter has, under their names on the hub."""
        return {}

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
    def config(self) -> ModelConfig:
        """Of the encoder."""
        return self.encoder.config

    def _config(self) -> ModelConfig:
        return self.config

    @property
    def labels(self) -> Labels:
        """Meaning of the columns of the logits, as the configuration says now."""
        source = self.config.source
        if self._labels is None or self._labels[0] is not source:
            self._labels = (source, self.config.labels)
        return self._labels[1]

    @labels.setter
    def labels(self, labels: Labels) -> None:
        self.config.write(**labels.as_config())

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

    def _checkpoint(self, every: int) -> None:
        self.encoder._checkpoint(every)

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
