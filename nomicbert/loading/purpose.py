"""Refuse a checkpoint of another kind than the class loads, by the name of the class that fits.

Where in the flow: `Embedder`, `CrossEncoder` and `describe` ask this of the settings, before any
weights are read.
"""

from nomicbert.errors import ConfigError
from nomicbert.loading.folder import CheckpointFolder

# Suffix of an architecture in config.json -> the class here.
HEADS = {
    "ForSequenceClassification": "CrossEncoder",
    "ForTokenClassification": "NomicBertForTokenClassification",
    "ForQuestionAnswering": "NomicBertForQuestionAnswering",
}
CLASSES = {"SentenceTransformer": "Embedder", "CrossEncoder": "CrossEncoder"}


def refuse_unless_embedder(checkpoint: CheckpointFolder) -> None:
    """Accept what a SentenceTransformer is: its modules, or a bare encoder.

    Raises: ConfigError: a reranker, or a model of another kind.
    """
    _refuse_unknown_type(checkpoint)
    folder, stated = checkpoint.folder, checkpoint.model_type
    if stated == "CrossEncoder" or checkpoint.task == "sequence-classification":
        raise ConfigError(f"{folder} holds a reranker: load it with CrossEncoder")
    if checkpoint.modules is not None or stated is not None:
        return
    for name in checkpoint.architectures:
        fitting = next((known for suffix, known in HEADS.items() if name.endswith(suffix)), None)
        if fitting is not None:
            raise ConfigError(
                f"{folder} holds a {name}, whose vectors mean nothing without its head: load it "
                f"with {fitting}"
            )


def refuse_unless_reranker(checkpoint: CheckpointFolder, num_labels: int | None) -> None:
    """Accept what a CrossEncoder is; with `num_labels` also an encoder that gets a new head.

    Raises: ConfigError: an embedding model, a model of another kind, or a reranker of modules
        whose encoder does not give what the next one takes.
    """
    _refuse_unknown_type(checkpoint)
    if is_embedder(checkpoint):
        if num_labels is None:
            raise ConfigError(
                f"{checkpoint.folder} holds an embedding model: load it with Embedder, or give "
                "num_labels for a new head to be trained"
            )
        return
    kinds = [module.kind for module in checkpoint.modules or ()]
    if is_modular(checkpoint) and "Pooling" not in kinds:
        raise ConfigError(
            f"{checkpoint.folder / 'modules.json'} lists {', '.join(kinds) or 'nothing'}: a "
            "reranker is supported as a Transformer alone, with the task sequence-classification, "
            "or as Transformer, Pooling and modules after it, the last of them a Dense"
        )
    if is_modular(checkpoint) and checkpoint.task == "sequence-classification":
        raise ConfigError(
            f"{checkpoint.encoder} states transformer_task = {checkpoint.task!r}, which gives no "
            f"tokens to pool, but {checkpoint.folder / 'modules.json'} lists {', '.join(kinds)}"
        )


def is_reranker(checkpoint: CheckpointFolder) -> bool:
    """Whether the settings describe a model that `CrossEncoder` loads and `Embedder` refuses."""
    if checkpoint.model_type is not None:
        return checkpoint.model_type == "CrossEncoder"
    if checkpoint.task == "sequence-classification":
        return True
    classifies = any(
        name.endswith("ForSequenceClassification") for name in checkpoint.architectures
    )
    return checkpoint.modules is None and classifies


def is_modular(checkpoint: CheckpointFolder) -> bool:
    """Whether a reranker has modules after its encoder, in place of a classifier in it."""
    return [module.kind for module in checkpoint.modules or ()] not in ([], ["Transformer"])


def is_embedder(checkpoint: CheckpointFolder) -> bool:
    """Whether the settings describe an embedding model and not a reranker."""
    if checkpoint.model_type is not None:
        return checkpoint.model_type == "SentenceTransformer"
    return any(module.kind == "Pooling" for module in checkpoint.modules or ())


def _refuse_unknown_type(checkpoint: CheckpointFolder) -> None:
    stated = checkpoint.model_type
    if stated is not None and stated not in CLASSES:
        fitting = " and ".join(f"{ours} for {theirs!r}" for theirs, ours in CLASSES.items())
        raise ConfigError(
            f"{checkpoint.folder} holds a {stated}, which is not supported: there are {fitting}. "
            f"Load it with sentence_transformers.{stated}"
        )
