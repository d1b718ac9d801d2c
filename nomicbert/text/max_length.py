"""Check limits on the length of texts: the checkpoint's, and a caller's."""

from nomicbert.arguments import as_whole
from nomicbert.config import EncoderConfig
from nomicbert.errors import ConfigError
from nomicbert.loading.folder import CheckpointFolder
from nomicbert.user_warnings import ConfigWarning, warn


def stated_limit(checkpoint: CheckpointFolder, least: int) -> int:
    """The checkpoint's own limit, in tokens.

    Args:
        checkpoint: its settings.
        least: smallest limit that leaves room for one token next to the special ones.

    Raises: ConfigError: below `least`. sentence-transformers would not cut texts at all, or cut all
        of every text.
    """
    limit = checkpoint.limit
    if limit.tokens < least:
        raise ConfigError(
            f"{checkpoint.encoder}: {limit.source} limits texts to {limit.tokens} tokens, but the "
            f"special tokens and one more are {least}: correct the limit"
        )
    return limit.tokens


def check_limit(
    limit: int,
    least: int,
    config: EncoderConfig,
    name: str = "max_length (or max_seq_length)",
) -> int:
    """Refuse a limit that is too small or too large.

    Args:
        limit: in tokens.
        least: smallest limit that leaves room for one token next to the special ones.
        config: of the encoder.
        name: of the limit, for the error message.

    Raises: ValueError: below `least`, or above the number of learned positions.
    """
    most = config.learned_positions
    if as_whole(name, limit) < least or (most is not None and limit > most):
        wanted = f"at least {least}" if most is None else f"{least} to {most}"
        raise ValueError(f"{name} must be {wanted}, not {limit}")
    return limit


def within_positions(limit: int, config: EncoderConfig) -> int:
    """A tokenizer's own limit, no more than the learned positions, with a ConfigWarning if it is.

    transformers' tokenizers take any `model_max_length`; its model then fails for long texts.
    """
    most = config.learned_positions
    if most is None or limit <= most:
        return limit
    warn(
        f"model_max_length = {limit} is more than the {most} positions of the encoder: {most} is "
        "used",
        ConfigWarning,
    )
    return most
