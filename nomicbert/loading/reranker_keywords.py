"""Keywords of sentence-transformers' CrossEncoder, old names included -> what to load.

Where in the flow: the first step of `CrossEncoder`; `sentence_keywords` translates what both
facades have.
Source: the arguments of `CrossEncoder` in sentence-transformers 2 to 6.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from nomicbert.loading.folder import CheckpointFolder
from nomicbert.loading.pretrained import CrossEncoderKeywords, ModelKeywords
from nomicbert.loading.purpose import is_embedder, is_modular
from nomicbert.loading.sentence_keywords import SharedKeywords, Wanted, translate

logger = logging.getLogger(__name__)

ORGANISATION = "cross-encoder/"
# Old name -> the present one.
OLD = {
    "model_name": "model_name_or_path",
    "automodel_args": "model_kwargs",
    "tokenizer_args": "processor_kwargs",
    "config_args": "config_kwargs",
    "default_activation_function": "activation_fn",
}
DROPOUT = "classifier_dropout"
# Keywords of the other facade.
EMBEDDERS = ("similarity_fn_name", "truncate_dim", "pooling")


class RerankerKeywords(SharedKeywords, total=False):
    """The keywords that exist for sentence-transformers' sake.

    Attributes:
        config_kwargs: num_labels, classifier_dropout, rotary_scaling_factor.
        classifier_dropout: dropout before the classifier in training, in place of the checkpoint's.
        model_name: old name of `model_name_or_path`.
        automodel_args: old name of `model_kwargs`.
        tokenizer_args: old name of `processor_kwargs`.
        config_args: old name of `config_kwargs`.
        default_activation_function: old name of `activation_fn`.
    """

    classifier_dropout: float | None
    model_name: str | None
    automodel_args: Mapping[str, object] | None
    tokenizer_args: Mapping[str, object] | None
    config_args: Mapping[str, object] | None
    default_activation_function: object


class RerankerConstructorKeywords(ModelKeywords, RerankerKeywords, total=False):
    """Those of `CrossEncoder`'s constructor that it does not name itself."""


class RerankerFromPretrainedKeywords(CrossEncoderKeywords, RerankerKeywords, total=False):
    """Those of `CrossEncoder.from_pretrained`."""


NAMES = RerankerKeywords.__annotations__.keys()


@dataclass
class WantedReranker:
    """What a call of the constructor asks for.

    Attributes:
        common: what both facades have.
        num_labels: columns of the logits, or None for the checkpoint's.
        activation: of the logits, unchecked; None for the checkpoint's.
        dropout: before the classifier; None for the checkpoint's.
    """

    common: Wanted
    num_labels: int | None
    activation: Any
    dropout: float | None

    def changed(self, checkpoint: CheckpointFolder) -> CheckpointFolder:
        """The checkpoint's settings with those of the call.

        Raises: TypeError: a dropout for a checkpoint that has modules in place of a classifier.
        """
        found = self.common.truncating(checkpoint)
        if self.dropout is None:
            return found
        if is_modular(found) and not is_embedder(found):
            raise TypeError(
                f"{DROPOUT} needs a classifier, but {found.folder} has modules: leave it out"
            )
        config = found.config
        return replace(
            found, config=replace(config, source={**config.source, DROPOUT: self.dropout})
        )


def wanted_reranker(
    location: Mapping[str, Any],
    num_labels: int | None,
    max_length: int | None,
    activation_fn: Any,
    keywords: Mapping[str, Any],
) -> WantedReranker:
    """Sort the arguments of a call of the constructor.

    Args:
        location: the arguments of `hub.resolve`, as the call gives them.
        num_labels: of the call.
        max_length: of the call.
        activation_fn: of the call.
        keywords: all others.

    Raises: TypeError, ValueError: as `translate`; also a keyword of `Embedder`, or
        two limits.
    """
    for name in EMBEDDERS:
        if name in keywords:
            raise TypeError(f"CrossEncoder has no keyword {name!r}: only Embedder has it")
    given = {"num_labels": num_labels, "activation_fn": activation_fn, **keywords}
    given = {name: value for name, value in given.items() if value is not None}
    for old, new in OLD.items():
        if old in given:
            # the words are part of the interface: callers look for them in their logs
            logger.warning(
                "CrossEncoder: the `%s` argument was renamed and is now deprecated: give `%s`",
                old,
                new,
            )
            _move(given, given.pop(old), new, f"{new} and {old}")
    config = given.get("config_kwargs", {})
    if isinstance(config, Mapping):  # else an error of `translate`
        given["config_kwargs"] = {k: v for k, v in config.items() if k not in _HEAD}
        for name in _HEAD & config.keys():
            _move(given, config[name], name, f"{name} and config_kwargs[{name!r}]")
    if DROPOUT in keywords:
        logger.warning(
            "CrossEncoder: the `%s` argument is deprecated: give config_kwargs={%r: %r}",
            DROPOUT,
            DROPOUT,
            given.get(DROPOUT),
        )
    head = [given.pop(name, None) for name in ("num_labels", "activation_fn", DROPOUT)]
    common = translate(location, given, ORGANISATION)
    if max_length is not None and common.tokenizer_limit not in (None, max_length):
        raise TypeError(
            f"max_length = {max_length!r:.80} and model_max_length = {common.tokenizer_limit} are "
            "given, with different values: give one of them"
        )
    return WantedReranker(common, *head)


_HEAD = {"num_labels", DROPOUT}


def _move(given: dict[str, Any], value: Any, name: str, both: str) -> None:
    """Set a keyword that may also have been given under its own name."""
    if value is None:
        return
    if name in given and given[name] is not value and given[name] != value:
        raise TypeError(f"{both} are given, with different values: give one of them")
    given[name] = value
