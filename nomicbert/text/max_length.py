"""The length at which a checkpoint's texts are cut when a call does not say.

Source: sentence-transformers reads these files in this order; transformers writes 1e30 into
tokenizer_config.json for "no limit".
"""

from dataclasses import dataclass
from pathlib import Path

from nomicbert.arguments import as_whole
from nomicbert.config import EncoderConfig
from nomicbert.loading.json_settings import optional

NO_LIMIT = 1_000_000


@dataclass(frozen=True)
class Limit:
    """How long a text may be.

    Attributes:
        tokens: special ones included.
        source: the file that states it, or "learned positions" where those allow less.
    """

    tokens: int
    source: str


def longest(config: EncoderConfig) -> int | None:
    """Tokens that learned positions allow; None for a rotary model, which has no such bound."""
    return None if config.rotary_dim else config.max_position_embeddings


def read_limit(folder: Path, config: EncoderConfig) -> Limit:
    """The limit that the files of an encoder's folder state.

    Raises: ConfigError: a length that is none.
    """
    served = optional(folder / "sentence_bert_config.json").size("max_seq_length", default=0)
    trained = optional(folder / "tokenizer_config.json").number(
        "model_max_length", default=NO_LIMIT
    )
    if served:
        found = Limit(served, "sentence_bert_config.json")
    elif trained < NO_LIMIT:
        found = Limit(int(trained), "tokenizer_config.json")
    else:
        found = Limit(config.max_position_embeddings, "config.json")
    most = longest(config)
    return found if most is None or found.tokens <= most else Limit(most, "learned positions")


def check_limit(limit: int, least: int, config: EncoderConfig) -> int:
    """A limit that a caller has chosen.

    Args:
        limit: tokens.
        least: that leave room for one beside the special ones.
        config: of the encoder.

    Raises: ValueError: below `least`, or above what the checkpoint has positions for.
    """
    most = longest(config)
    name = "max_length (or max_seq_length)"
    if as_whole(name, limit) < least or (most is not None and limit > most):
        wanted = f"at least {least}" if most is None else f"{least} to {most}"
        raise ValueError(f"{name} must be {wanted}, not {limit}")
    return limit
