"""Labels and loss of a classification head: their keys in config.json.

Source: PretrainedConfig of transformers, whose keys these are.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from nomicbert.errors import ConfigError

Problem = Literal["regression", "single_label_classification", "multi_label_classification"]
PROBLEMS: tuple[Problem, ...] = get_args(Problem)
# Number of labels if config.json states none. Source: PretrainedConfig of transformers.
DEFAULT_COUNT = 2
# Labels without names of their own. Names take memory, and no head has so many.
MOST_LABELS = 10**6


@dataclass(frozen=True)
class Labels:
    """The labels of a head.

    Attributes:
        names: of each column of the logits.
        problem_type: selects the loss; with None the labels of each call decide.
        dropout_p: before the classifier; None uses that of the hidden states.
    """

    names: tuple[str, ...]
    problem_type: Problem | None = None
    dropout_p: float | None = None

    @classmethod
    def numbered(cls, count: int) -> "Labels":
        """Make `count` labels: LABEL_0, LABEL_1, ..."""
        if count < 1:
            raise ValueError(f"num_labels must be at least 1, not {count}")
        return cls(tuple(f"LABEL_{i}" for i in range(count)))

    def counting(self, count: int | None) -> "Labels":
        """Set the number of labels; a different number replaces the names. None changes nothing."""
        if count is None or count == len(self.names):
            return self
        return replace(self, names=self.numbered(count).names)

    @classmethod
    def read(cls, source: Mapping[str, Any]) -> "Labels":
        """From config.json.

        Raises: ConfigError: labels that are not numbered from 0, an unknown problem_type.
        """
        names, count = source.get("id2label"), source.get("num_labels") or DEFAULT_COUNT
        if names is None:
            if not isinstance(count, int) or not 1 <= count <= MOST_LABELS:
                raise ConfigError(f"num_labels must be 1 to {MOST_LABELS}, not {count!r:.80}")
            labels = cls.numbered(count)
        else:
            count = len(names) if isinstance(names, Mapping) else 0
            wanted = [str(i) for i in range(count)]
            if not count or set(names) != set(wanted):
                raise ConfigError(f"id2label must count from 0 without gaps, not {names!r:.80}")
            labels = cls(tuple(str(names[i]) for i in wanted))
        dropout = source.get("classifier_dropout")
        if dropout is not None and not (isinstance(dropout, int | float) and 0 <= dropout <= 1):
            raise ConfigError(f"classifier_dropout must be from 0 to 1, not {dropout!r:.80}")
        return replace(labels, dropout_p=dropout).meant_as(source.get("problem_type"))

    def meant_as(self, problem_type: str | None) -> "Labels":
        """Set the problem type.

        Raises: ConfigError: not one of `PROBLEMS`.
        """
        known = next((name for name in PROBLEMS if name == problem_type), None)
        if known is None and problem_type is not None:
            raise ConfigError(
                f"problem_type must be one of {', '.join(PROBLEMS)}, not {problem_type!r:.80}"
            )
        return replace(self, problem_type=known)

    def as_config(self) -> dict[str, Any]:
        """The keys of config.json."""
        keys: dict[str, Any] = {
            "id2label": {str(i): name for i, name in enumerate(self.names)},
            "label2id": {name: i for i, name in enumerate(self.names)},
            "num_labels": len(self.names),
        }
        if self.problem_type is not None:
            keys["problem_type"] = self.problem_type
        return keys
