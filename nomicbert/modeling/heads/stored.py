"""Which heads a checkpoint holds, and which parameters of a model are therefore new."""

import logging
from collections.abc import Collection

import torch
from torch import nn

from nomicbert.config import EncoderConfig
from nomicbert.errors import CheckpointError
from nomicbert.loading.tensor_files import TensorFiles
from nomicbert.loading.tensor_names import DECODER_BIAS, DECODER_WEIGHT, WORDS, is_untied
from nomicbert.loading.weights import by_canonical_name

logger = logging.getLogger(__name__)

TRANSFORM = "cls.predictions.transform.dense"
CLASSIFIERS = ("SequenceClassification", "TokenClassification", "MultipleChoice")


def heads_in(config: EncoderConfig, files: TensorFiles) -> list[str]:
    """The tasks that a checkpoint has a head for, in the words of its `architectures`."""
    names = by_canonical_name(files)
    found = []
    if f"{TRANSFORM}.weight" in names:
        found.append("MaskedLM")
    if "qa_outputs.weight" in names:
        found.append("QuestionAnswering")
    if "classifier.weight" in names:
        # texts and tokens are classified by layers of one name
        stated = str(config.source.get("architectures"))
        said = [task for task in CLASSIFIERS if task in stated]
        found += said or [
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
    """Names of the parameters of a model that its checkpoint does not have, and need not have.

    Args:
        model: with a head for `task`.
        task: "MaskedLM", "SequenceClassification", "TokenClassification", "QuestionAnswering".
        files: of the checkpoint.
        config: of its encoder.
        num_labels: what the caller asked for, which allows a new head; or None.
        ignore_mismatched_sizes: whether a head of another size may be replaced.

    Raises: CheckpointError: no such head, and no new one was asked for; or one of another size.
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
    """Whether the scores of words come from the word embedding table."""
    if is_untied(config):
        return False
    names = by_canonical_name(files)
    if DECODER_WEIGHT not in names or WORDS not in names:
        return True
    return torch.equal(files.read(names[DECODER_WEIGHT]), files.read(names[WORDS]))


def lacks_biases(config: EncoderConfig, files: TensorFiles) -> bool:
    """Whether the head for masked words has no biases: NomicBERT's own code makes some so."""
    names = by_canonical_name(files)
    allowed = config.model_type == "nomic_bert" and config.source.get("mlp_fc1_bias") is False
    return allowed and f"{TRANSFORM}.bias" not in names and DECODER_BIAS not in names
