"""The checkpoint's own defaults for vectors: the similarity function and the columns to keep."""

from nomicbert.errors import ConfigError
from nomicbert.loading.folder import CheckpointFolder
from nomicbert.vectors.pooling import Finish, Pooling
from nomicbert.vectors.similarity import similarity_name


def stated_similarity(checkpoint: CheckpointFolder) -> str:
    """The name of the similarity function.

    Raises: ConfigError: unknown name; the error names file and key.
    """
    try:
        return similarity_name(checkpoint.similarity)
    except ValueError as error:
        raise ConfigError(f"{checkpoint.prompts.path}: {error}") from error


def stated_truncate_dim(checkpoint: CheckpointFolder, pooling: Pooling) -> int | None:
    """The columns that `encode` keeps by default; None for all.

    Raises: ConfigError: more or fewer than the vectors have.
    """
    try:
        pooling.check(Finish(truncate_dim=checkpoint.truncate_dim))
    except ValueError as error:
        raise ConfigError(f"{checkpoint.prompts.path}: {error}") from error
    return checkpoint.truncate_dim
