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

    def named(self, names: tuple[str, ...] | None) -> "Labels":
        """Set the names of the labels; None changes nothing."""
        return self if names is None else replace(self, names=names)

    def dropping(self, classifier_dropout: float | None) -> "Labels":
        """Set the dropout before the classifier; None changes nothing.

        Raises: TypeError: not a number. ValueError: not from 0 to 1.
        """
        p = classifier_dropout
        if p is None:
            return self
        if isinstance(p, bool) or not isinstance(p, int | float):
            raise TypeError(f"classifier_dropout must be a number from 0 to 1, not {p!r:.80}")
        if not 0 <= p <= 1:
            raise ValueError(f"classifier_dropout must be from 0 to 1, not {p}")
        return replace(self, dropout_p=float(p))

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
        """The keys of config.json, null included: it replaces an older value."""
        return {
            "id2label": {str(i): name for i, name in enumerate(self.names)},
            "label2id": {name: i for i, name in enumerate(self.names)},
            "num_labels": len(self.names),
            "problem_type": self.problem_type,
            "classifier_dropout": self.dropout_p,
        }


def stated_count(source: Mapping[str, Any]) -> int | None:
    """The number of labels that a configuration states; None if it states none."""
    stated = source.get("id2label") is not None or source.get("num_labels") is not None
    return len(Labels.read(source).names) if stated else None


def asked_names(
    num_labels: int | None,
    id2label: Mapping[int, str] | None,
    label2id: Mapping[str, int] | None,
) -> tuple[str, ...] | None:
    """The names that a caller gives to the labels; None for none.

    Args:
        num_labels: their number, or None.
        id2label: number from 0 -> name, or None.
        label2id: the inverse, or None.

    Raises: TypeError, ValueError: not such a mapping, or they contradict each other.
    """
    found: list[tuple[str, ...]] = []
    for given, inverse in ((id2label, False), (label2id, True)):
        if given is None:
            continue
        what, wanted = ("label2id", "{name: 0, ...}") if inverse else ("id2label", "{0: name, ...}")
        if not isinstance(given, Mapping):
            raise TypeError(f"{what} must be a dict as {wanted}, not {given!r:.80}")
        names: dict[str, Any] = (
            {str(i): name for name, i in given.items()}
            if inverse
            else {str(i): name for i, name in given.items()}
        )
        places = [str(i) for i in range(len(given))]
        strings = all(isinstance(name, str) for name in names.values())
        if not places or not strings or set(names) != set(places):
            raise ValueError(
                f"{what} must be {wanted}, counted from 0 without gaps, not {dict(given)!r:.80}"
            )
        found.append(tuple(names[place] for place in places))
    if len(set(found)) > 1:
        raise ValueError(f"id2label and label2id differ: {id2label!r:.80} and {label2id!r:.80}")
    if found and num_labels not in (None, len(found[0])):
        raise ValueError(f"num_labels is {num_labels}, but there are {len(found[0])} names")
    return found[0] if found else None
