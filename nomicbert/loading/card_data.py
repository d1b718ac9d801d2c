"""What a user knows about a model and its weights do not show: the data of its model card.

Where in the flow: `model_card_data` of a model; `model_card` writes it into README.md when the
model is saved. Evaluators add their results.
Source: the metadata of model cards, which Hugging Face documents, under sentence-transformers'
names.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

# Rows that `set_widget_examples` reads, and characters that it keeps of a text.
EXAMPLES = 3
LONGEST = 500


@dataclass(frozen=True)
class Evaluation:
    """The results of one evaluator.

    Attributes:
        evaluator: that gave them, by which later results of its own replace them.
        description: such as "Embedding Similarity".
        dataset: its name, or "".
        metrics: name -> value, without the name of the dataset.
        primary: the metric that counts most, or "".
        epoch, step: of training; -1 or 0 if it was not measured in training.
    """

    evaluator: object = field(repr=False, compare=False)
    description: str
    dataset: str
    metrics: Mapping[str, object]
    primary: str = ""
    epoch: float = 0
    step: int = 0


@dataclass
class ModelCardData:
    """Data of a model card that only its author knows.

    Nothing is asked of the hub, and nothing that is left out is invented.

    >>> from nomicbert import ModelCardData
    >>> data = ModelCardData(language="en", license="apache-2.0", model_id="me/my-model")
    >>> data.language
    ['en']

    Attributes:
        language: of the texts, such as "en" or ["en", "de"].
        license: of the weights, such as "apache-2.0"; "other" with `license_name`. By default that
            of the checkpoint that was loaded, if its card states one.
        license_name: of a licence that the hub has no identifier for.
        license_link: to the text of the licence; needs one of the two.
        model_name: title of the card.
        model_id: repository of the model on the hub; `push_to_hub` sets it.
        train_datasets, eval_datasets: a dict per data set, with "name", or the hub's "id", or both.
        task_name: what the model is for, in a few words.
        tags: in addition to those of the class.
        local_files_only: accepted for existing call sites; no request is made in any case.
        generate_widget_examples: whether `set_widget_examples` keeps examples.
        base_model: repository, or repositories, that the model was made from; by default the one
            that it was loaded from.
        base_model_revision: of `base_model`, which it needs.
        widget: examples for the hub's page of the model.
        evaluations: results in the order in which the evaluators ran first.

    Raises: TypeError, ValueError: an invalid value; the message names it.
    """

    language: str | list[str] | None = None
    license: str | None = None
    model_name: str | None = None
    model_id: str | None = None
    train_datasets: list[dict[str, str]] = field(default_factory=list)
    eval_datasets: list[dict[str, str]] = field(default_factory=list)
    task_name: str | None = None
    tags: list[str] = field(default_factory=list)
    local_files_only: bool = False
    generate_widget_examples: bool = True
    license_name: str | None = None
    license_link: str | None = None
    base_model: str | list[str] | None = None
    base_model_revision: str | None = None
    widget: list[dict[str, object]] = field(default_factory=list, init=False)
    evaluations: list[Evaluation] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        """Bring lists into one form, and check all values."""
        self.check()

    def check(self) -> None:
        """Refuse values that a card cannot have; a caller may have set them after the constructor.

        Raises: TypeError, ValueError: it names the attribute and the value.
        """
        self.language = _names("language", self.language)
        self.tags = _names("tags", self.tags)
        for name in (
            "license", "model_name", "model_id", "task_name", "license_name", "license_link",
            "base_model_revision",
        ):  # fmt: skip
            _check_text(name, getattr(self, name))
        if self.license_link and not (self.license or self.license_name):
            raise ValueError(
                f"license_link {self.license_link!r} needs license or license_name: it would "
                "otherwise be taken for the licence of another checkpoint"
            )
        if self.base_model_revision and not self.base_model:
            raise ValueError(
                f"base_model_revision {self.base_model_revision!r} needs base_model, whose "
                "revision it is"
            )
        if self.base_model is not None and not isinstance(self.base_model, str):
            self.base_model = _names("base_model", self.base_model)
        for name in ("train_datasets", "eval_datasets"):
            setattr(self, name, as_datasets(name, getattr(self, name)))
        if self.model_id is not None and self.model_id.count("/") != 1:
            raise ValueError(
                f"model_id must be 'organisation/name', as the hub has it, not {self.model_id!r}"
            )

    def set_evaluation_metrics(
        self,
        evaluator: object,
        metrics: Mapping[str, object],
        epoch: float = 0,
        step: int = 0,
    ) -> None:
        """Take results into the card; those that the same evaluator gave earlier are replaced.

        Args:
            evaluator: what it has of `name` (of the data set), `primary_metric` and `description`
                is used; without a description, the name of its class.
            metrics: name -> value; a name may begin with the evaluator's and an underscore.
            epoch: of training.
            step: of training.
        """
        dataset, primary = (_word(evaluator, name) for name in ("name", "primary_metric"))
        prefix = f"{dataset}_"
        if dataset and all(name.startswith(prefix) for name in metrics):
            metrics = {name.removeprefix(prefix): value for name, value in metrics.items()}
            primary = primary.removeprefix(prefix)
        kind = type(evaluator).__name__
        found = Evaluation(
            evaluator,
            _word(evaluator, "description") or kind.removesuffix("Evaluator") or kind,
            dataset,
            dict(metrics),
            primary,
            epoch,
            step,
        )
        for place, old in enumerate(self.evaluations):
            if old.evaluator is evaluator:
                self.evaluations[place] = found
                return
        self.evaluations.append(found)

    def set_widget_examples(self, dataset: Iterable[Mapping[str, object]]) -> None:
        """Take the texts of the first rows of a data set as examples, which the card then shows.

        Args:
            dataset: rows of columns by name; or a dict of data sets, whose first one is taken. The
                first text of a row is compared with its others, and with those of the other rows.
        """
        if not self.generate_widget_examples:
            return
        if isinstance(dataset, Mapping):
            dataset = next(iter(dataset.values()), ())
        rows = []
        for row in dataset:
            rows.append([text[:LONGEST] for text in row.values() if isinstance(text, str)])
            if len(rows) == EXAMPLES:
                break
        rows = [row for row in rows if row]
        self.widget = []
        for place, (first, *rest) in enumerate(rows):
            others = rest + [row[-1] for i, row in enumerate(rows) if i != place]
            if others:
                self.widget.append({"source_sentence": first, "sentences": others})

    def set_model_id(self, model_id: str) -> None:
        """Set `model_id`."""
        replace(self, model_id=model_id)  # checked before it is set
        self.model_id = model_id

    def set_base_model(self, model_id: str, revision: str | None = None) -> bool:
        """Set `base_model` and its revision, without asking the hub; always True."""
        replace(self, base_model=model_id, base_model_revision=revision)
        self.base_model, self.base_model_revision = model_id, revision
        return True

    def set_language(self, language: str | list[str]) -> None:
        """Set `language`."""
        self.language = _names("language", language)

    def set_license(self, license: str) -> None:
        """Set `license`."""
        _check_text("license", license)
        self.license = license

    def add_tags(self, tags: str | list[str]) -> None:
        """Add tags that are not there yet."""
        new = _names("tags", tags)
        self.tags = list(dict.fromkeys([*self.tags, *new]))


def as_number(value: object) -> float | None:
    """A metric's value as a finite float; None for any other."""
    try:
        number = float(value)  # type: ignore[arg-type]  # numpy's and torch's scalars among them
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _word(evaluator: object, name: str) -> str:
    found = getattr(evaluator, name, None)
    return found if isinstance(found, str) else ""


def _names(name: str, given: object) -> list[str]:
    """A name or names as a list."""
    stated: list[object] = [*given] if isinstance(given, list | tuple) else [given]
    found = [one for one in stated if isinstance(one, str) and one]
    if len(found) != len(stated) and given is not None:
        raise TypeError(f"{name} must be a string or a list of strings, not {given!r:.80}")
    return found


def _check_text(name: str, given: object) -> None:
    if given is not None and not (isinstance(given, str) and given.strip()):
        raise TypeError(f"{name} must be a string that is not empty, or None, not {given!r:.80}")


def as_datasets(name: str, given: object) -> list[dict[str, str]]:
    """Data sets as dicts; a lone name is the hub's id if it has the form of one.

    Raises: TypeError: anything else, by the name of the argument.
    """
    found = []
    for one in given if isinstance(given, list | tuple) else [given]:
        stated = {"id" if "/" in one else "name": one} if isinstance(one, str) else one
        kept = dict[str, str]()
        for key in ("name", "id"):
            value = stated.get(key) if isinstance(stated, Mapping) else None
            if isinstance(value, str) and value:
                kept[key] = value
        if not kept:
            raise TypeError(
                f"{name} must be a list of dicts with 'name' or 'id' of a data set, not {one!r:.80}"
            )
        found.append(kept)
    return found
