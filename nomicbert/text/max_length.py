"""The length at which texts are cut, where a caller chooses it; `loading.folder` has the stated."""

from nomicbert.arguments import as_whole
from nomicbert.config import EncoderConfig


def check_limit(
    limit: int,
    least: int,
    config: EncoderConfig,
    name: str = "max_length (or max_seq_length)",
) -> None:
    """Refuse a limit that a caller has chosen and that cannot be.

    Args:
        limit: tokens.
        least: that leave room for one beside the special ones.
        config: of the encoder.
        name: of the limit, for the message.

    Raises: ValueError: below `least`, or above what the checkpoint has positions for.
    """
    most = config.learned_positions
    if as_whole(name, limit) < least or (most is not None and limit > most):
        wanted = f"at least {least}" if most is None else f"{least} to {most}"
        raise ValueError(f"{name} must be {wanted}, not {limit}")
