"""Find the heads that a checkpoint holds, and the parameters that it lacks."""

import logging
from collections.abc import Collection

import torch
from torch import Tensor, nn

from nomicbert.config import EncoderConfig
from nomicbert.errors import CheckpointError
from nomicbert.loading.tensor_files import TensorFiles
from nomicbert.loading.tensor_names import (
    DECODER_BIAS,
    DECODER_WEIGHT,
    ENCODER_PREFIX,
    WORDS,
    is_untied,
)
from nomicbert.loading.weights import by_canonical_name

logger = logging.getLogger(__name__)

TRANSFORM = "cls.predictions.transform.dense"
NEXT_SENTENCE, POOLER = "cls.seq_relationship", "pooler.dense"
CLASSIFIERS = ("SequenceClassification", "TokenClassification", "MultipleChoice")


def heads_in(config: EncoderConfig, files: TensorFiles) -> list[str]:
    """The tasks that a checkpoint has a head for, as named in `architectures`."""
    names = by_canonical_name(files)
    found = []
    if f"{TRANSFORM}.weight" in names:
        found.append("MaskedLM")
    if "qa_outputs.weight" in names:
        found.append("QuestionAnswering")
    if "classifier.weight" in names:
        # heads for texts and for tokens store their layer under the same name
        stated = str(config.source.get("architectures"))
        named = [task for task in CLASSIFIERS if task in stated]
        found += named or [
            "TokenClassification",
            *(["SequenceClassification"] if "pooler.dense.weight" in names else []),
        ]
    return sorted(found)


def new_parameters(
    model: nn.Module,
    task: str,
    files: TensorFiles,
    config: EncoderConfig,
    num_labels: int | None,
    ignore_mismatched_sizes: bool,
) -> Collection[str]:
    """Names of a model's parameters that are new, because the caller asked for a new head.

    Args:
        model: with a head for `task`.
        task: "MaskedLM", "SequenceClassification", "TokenClassification", "QuestionAnswering".
        files: of the checkpoint.
        config: of its encoder.
        num_labels: given by the caller, which allows a new head; or None.
        ignore_mismatched_sizes: whether a head of another size may be replaced.

    Raises: CheckpointError: no such head and no `num_labels`; or a head of another size.
    """
    names = by_canonical_name(files)
    layer = next((n for n in ("classifier", "qa_outputs") if hasattr(model, n)), None)
    if task in heads_in(config, files):
        if layer is None or num_labels is None:
            return ()
        stored = files.shape(names[f"{layer}.weight"])[0]
        if stored == num_labels:
            return ()
        if not ignore_mismatched_sizes:
            raise CheckpointError(
                f"{files.folder} has a head of {stored} labels, not {num_labels}: leave num_labels "
                "out to load it, or let ignore_mismatched_sizes=True replace it by a new one"
            )
    elif num_labels is None or layer is None:
        there = ", ".join(heads_in(config, files)) or "none"
        more = "" if layer is None else "; num_labels builds a new one, to be trained"
        raise CheckpointError(f"{files.folder} has no head for {task} (it has {there}){more}")
    new = [f"{layer}.weight", f"{layer}.bias"]
    if getattr(model, "pooled", False) and "pooler.dense.weight" not in names:
        new += ["encoder.pooler.weight", "encoder.pooler.bias"]
    logger.warning("%s: %s are new and random: train them", files.folder, ", ".join(new))
    return new


def is_tied(config: EncoderConfig, files: TensorFiles) -> bool:
    """Whether the decoder is the word embedding table."""
    if is_untied(config):
        return False
    names = by_canonical_name(files)
    if DECODER_WEIGHT not in names or WORDS not in names:
        return True
    return torch.equal(files.read(names[DECODER_WEIGHT]), files.read(names[WORDS]))


def lacks_biases(config: EncoderConfig, files: TensorFiles) -> bool:
    """Whether the masked LM head has no biases, as in some models of NomicBERT's own code."""
    names = by_canonical_name(files)
    allowed = config.model_type == "nomic_bert" and config.source.get("mlp_fc1_bias") is False
    return allowed and f"{TRANSFORM}.bias" not in names and DECODER_BIAS not in names


def next_sentence(config: EncoderConfig, files: TensorFiles) -> dict[str, Tensor]:
    """The tensors of a BertForPreTraining checkpoint that a masked LM head has no use for.

    Returns: name on the hub -> a copy; empty for a checkpoint without a next-sentence head.
    """
    names = by_canonical_name(files)
    if config.model_type != "bert" or f"{NEXT_SENTENCE}.weight" not in names:
        return {}
    wanted = {NEXT_SENTENCE: NEXT_SENTENCE, POOLER: f"{ENCODER_PREFIX['bert']}{POOLER}"}
    return {
        f"{saved}.{kind}": files.read(names[f"{stem}.{kind}"]).clone()
        for stem, saved in wanted.items()
        for kind in ("weight", "bias")
        if f"{stem}.{kind}" in names
    }
