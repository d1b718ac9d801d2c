"""Check a caller's limit on the length of texts; `loading.folder` reads the checkpoint's."""

from nomicbert.arguments import as_whole
from nomicbert.config import EncoderConfig


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
