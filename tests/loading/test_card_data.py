"""loading.card_data: what an author states, and results of evaluators."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from nomicbert import ModelCardData
from nomicbert.loading.card_data import as_number


class BinaryEvaluator:
    """With sentence-transformers' attributes."""

    def __init__(self, name: str = "", primary: str | None = None) -> None:
        self.name, self.primary_metric = name, primary


def test_lists_have_one_form() -> None:
    sets: Any = ["org/pairs", "notes", {"name": "a", "id": "b/c"}]
    tags: Any = "mine"
    data = ModelCardData(language="en", tags=tags, train_datasets=sets)
    assert data.language == ["en"]
    assert data.tags == ["mine"]
    assert data.train_datasets == [{"id": "org/pairs"}, {"name": "notes"}, sets[2]]
    data.add_tags(["mine", "new"])
    data.set_language(["de", "en"])
    data.set_license("mit")
    assert (data.tags, data.language, data.license) == (["mine", "new"], ["de", "en"], "mit")


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"language": 3}, "language must be a string or a list"),
        ({"tags": ["a", None]}, r"tags must be a string or a list of strings, not \['a', None\]"),
        ({"license": ""}, "license must be a string that is not empty"),
        ({"model_name": b"x"}, "model_name must be a string"),
        ({"base_model": ["a/b", ""]}, "base_model must be a string or a list"),
        ({"train_datasets": [{"nme": "x"}]}, "train_datasets must be .* not {'nme': 'x'}"),
        ({"eval_datasets": [7]}, "eval_datasets must be a list of dicts .* not 7"),
        ({"model_id": "lonely"}, "model_id must be 'organisation/name', .* not 'lonely'"),
    ],
)
def test_what_is_refused(stated: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        ModelCardData(**stated)
    data = ModelCardData()
    for name, value in stated.items():
        setattr(data, name, value)
    with pytest.raises((TypeError, ValueError), match=message):
        data.check()


def test_a_setter_that_refuses_changes_nothing() -> None:
    data = ModelCardData(model_id="me/mine")
    with pytest.raises(ValueError, match="not 'lonely'"):
        data.set_model_id("lonely")
    assert data.model_id == "me/mine"
    assert data.set_base_model("org/base", "v2")
    assert (data.base_model, data.base_model_revision) == ("org/base", "v2")


def test_results_of_evaluators() -> None:
    data = ModelCardData()
    first, second = BinaryEvaluator("dev_set", "dev_set_f1"), BinaryEvaluator()
    data.set_evaluation_metrics(first, {"dev_set_f1": 0.1, "dev_set_ap": 0.2}, 1, 10)
    data.set_evaluation_metrics(second, {"f1": 0.5}, epoch=-1, step=-1)
    data.set_evaluation_metrics(first, {"dev_set_f1": 0.3, "dev_set_ap": 0.4}, 2, 20)
    dev, other = data.evaluations
    assert (dev.description, dev.dataset, dev.primary) == ("Binary", "dev_set", "f1")
    assert (dev.metrics, dev.epoch, dev.step) == ({"f1": 0.3, "ap": 0.4}, 2, 20)
    assert (other.dataset, other.metrics, other.primary) == ("", {"f1": 0.5}, "")


def test_results_whose_names_differ_from_the_evaluators_stay_whole() -> None:
    data = ModelCardData()
    data.set_evaluation_metrics(BinaryEvaluator("dev", "dev_f1"), {"dev_f1": 1.0, "loss": 2.0})
    (found,) = data.evaluations
    assert found.metrics == {"dev_f1": 1.0, "loss": 2.0}
    assert found.primary == "dev_f1"


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (np.float32(0.5), 0.5),
        (torch.tensor(2.0), 2.0),
        ("0.25", 0.25),
        (float("nan"), None),
        (float("inf"), None),
        ("high", None),
        (None, None),
        (np.zeros(2), None),
    ],
)
def test_metrics_as_numbers(value: object, number: float | None) -> None:
    assert as_number(value) == number


def test_examples_of_a_data_set() -> None:
    rows = [{"q": f"q{i}", "n": i, "a": f"a{i}" + "x" * 600} for i in range(9)]
    data = ModelCardData()
    data.set_widget_examples({"train": rows, "test": []})
    assert [one["source_sentence"] for one in data.widget] == ["q0", "q1", "q2"]
    first = data.widget[0]["sentences"]
    assert isinstance(first, list)
    assert [text[:2] for text in first] == ["a0", "a1", "a2"]
    assert {len(text) for text in first} == {500}
    silent = ModelCardData(generate_widget_examples=False)
    silent.set_widget_examples(rows)
    assert silent.widget == []
    data.set_widget_examples([{"only": "one"}])
    assert data.widget == []


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"license_link": "https://x.org"}, "license_link 'https://x.org' needs license or"),
        ({"base_model_revision": "v2"}, "base_model_revision 'v2' needs base_model"),
    ],
)
def test_what_says_nothing_alone(given: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        ModelCardData(**given)
    ModelCardData(**given, license="other", base_model="org/base")
