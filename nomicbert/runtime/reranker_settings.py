"""The settings of `CrossEncoder` that may change after loading, and how they are saved.

Where in the flow: a base class of `CrossEncoder`, as `settings` has one for `Embedder`.
"""

import os
from dataclasses import replace
from pathlib import Path

from nomicbert.loading.folder import ACTIVATION_KEYS
from nomicbert.loading.model_card import Card
from nomicbert.loading.origin import Origin
from nomicbert.modeling.heads import NomicBertForSequenceClassification
from nomicbert.modeling.model import NomicBert
from nomicbert.runtime.activation import Activation, activation_name, check_activation
from nomicbert.runtime.cards import reranker_card
from nomicbert.runtime.settings import FacadeSettings
from nomicbert.text.max_length import check_limit
from nomicbert.user_warnings import ConfigWarning, warn
from nomicbert.vectors.saving import save_reranker_settings
from nomicbert.vectors.scores import ModularReranker


class CrossEncoderSettings(FacadeSettings):
    """Those of `CrossEncoder`."""

    model: NomicBertForSequenceClassification
    _facade = "reranker"
    _activation: Activation

    @property
    def _module(self) -> NomicBertForSequenceClassification:
        return self.model

    @property
    def _encoder(self) -> NomicBert:
        return self.model.encoder

    @property
    def _least_length(self) -> int:
        return 1

    def _card(self) -> Card:
        return reranker_card(self.model, self._prompts, self._max_seq_length, self._activation)

    def _origin(self) -> Origin:
        encoder = self.model.encoder.loaded_from
        return encoder if isinstance(self.model, ModularReranker) else self.model.loaded_from

    @property
    def activation_fn(self) -> Activation:
        """Logits -> scores; applied by `predict` and `rank`."""
        return self._activation

    @activation_fn.setter
    def activation_fn(self, value: Activation) -> None:
        self._activation = check_activation(value)

    def _limit(self, max_length: int | None) -> int:
        """The limit of a call: its own, or `max_seq_length`."""
        given = max_length is not None
        limit = self._max_seq_length if max_length is None else max_length
        name = "max_length" if given else "max_seq_length"
        return check_limit(limit, self._least_length, self._encoder_config, name)

    def _save_all(self, folder: str | os.PathLike[str]) -> None:
        """See FacadeSettings; an activation without a name in torch.nn gets a ConfigWarning."""
        stated = activation_name(self.activation_fn)
        if stated is None:
            warn(
                "activation_fn has no name in torch.nn and is not saved: set it again after "
                "loading",
                ConfigWarning,
            )
        config = self.model.config
        source = {key: v for key, v in config.source.items() if key not in ACTIVATION_KEYS}
        source |= {"sentence_transformers": {"activation_fn": stated}} if stated else {}
        self.model.encoder.config = replace(config, source=source)
        self.model.save_files(folder)
        self.save_settings(folder)

    def save_settings(self, folder: str | os.PathLike[str]) -> None:
        """Write all that `save_pretrained` writes but the model, into a folder that exists."""
        stated = activation_name(self.activation_fn)
        modular = isinstance(self.model, ModularReranker)
        settings = (self._prompts, self.max_seq_length, stated, modular)
        save_reranker_settings(Path(folder), self.tokenizer, *settings)
