"""loading.model_card: metadata that the hub's own reader reads back, and the text below it."""

from __future__ import annotations

import errno
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, metadata_load

from nomicbert import ModelCardData
from nomicbert.loading import model_card
from nomicbert.loading.model_card import Card, Snippet
from nomicbert.loading.origin import Origin

NASTY = ["a: b", '"', "it's", "#no", "- x", "{y}", "é日本😀", "a\nb", "null", "1.0", "a | b", "yes"]


class TripletEvaluator:
    name = "dev | test"
    primary_metric = "dev | test_accuracy"
    description = "Triplet: of texts"


def card(**changes: Any) -> Card:
    own: dict[str, Any] = {
        "kind": "Embedder",
        "summary": "An embedding model.",
        "library_name": "sentence-transformers",
        "pipeline_tag": "sentence-similarity",
        "tags": ("first",),
        "facts": {"Layers": "3"},
        "snippets": (Snippet("nomicbert", "model = Embedder(MODEL)"),),
    }
    return Card(**own | changes)


UNKNOWN = Origin()


def saved(folder: Path, data: ModelCardData, origin: Origin = UNKNOWN, **changes: Any) -> Any:
    """The metadata as huggingface_hub reads it, and the text."""
    folder.mkdir(exist_ok=True)
    (folder / "README.md").unlink(missing_ok=True)
    assert model_card.write(folder, model_card.render(card(**changes), data, origin))
    found = ModelCard.load(folder / "README.md")
    assert found.data.to_dict() == metadata_load(folder / "README.md")
    return found.data.to_dict(), found.text


def test_metadata_is_read_back(tmp_path: Path) -> None:
    data = ModelCardData(
        language=["en", "no"],
        license="other",
        license_name="acme: 'free'",
        license_link="https://x.org",
        model_name='My "model": #1',
        model_id="me/my-model",
        train_datasets=[{"name": "pairs", "id": "org/pairs"}, {"name": "notes"}],
        eval_datasets=[{"id": "org/dev"}],
        task_name="finding recipes",
        tags=["mine", "first"],
        base_model=["org/a", "org/b"],
    )
    data.set_widget_examples([{"q": NASTY[0], "a": "\n".join(NASTY)}])
    data.set_evaluation_metrics(
        TripletEvaluator(), {"dev | test_accuracy": 0.75, "dev | test_note": "high"}, 1.5, 20
    )
    found, text = saved(tmp_path, data)
    (index,) = found.pop("model-index")
    assert found == {
        "language": ["en", "no"],
        "license": "other",
        "license_name": "acme: 'free'",
        "license_link": "https://x.org",
        "library_name": "sentence-transformers",
        "pipeline_tag": "sentence-similarity",
        "tags": ["first", "nomicbert", "mine"],
        "base_model": ["org/a", "org/b"],
        "datasets": ["org/pairs"],
        "metrics": ["accuracy", "note"],
        "widget": [{"source_sentence": NASTY[0], "sentences": ["\n".join(NASTY)]}],
    }
    assert index["name"] == 'My "model": #1'
    (result,) = index["results"]
    assert result["task"] == {"type": "triplet:-of-texts", "name": "Triplet: of texts"}
    assert result["dataset"] == {"type": "dev | test", "name": "dev | test"}
    (metric,) = result["metrics"]
    assert (metric["type"], metric["value"]) == ("accuracy", 0.75)
    assert '# My "model": #1\n' in text
    assert "Its purpose: finding recipes." in text
    assert 'model = Embedder("me/my-model")' in text
    assert "### Triplet: of texts: dev | test\n" in text
    assert "after 20 steps (epoch 1.5)" in text
    assert "| **accuracy** | **0.7500** |\n| note | high |" in text
    assert "Training data: [pairs](https://huggingface.co/datasets/org/pairs), notes." in text
    assert "Evaluation data: [org/dev](https://huggingface.co/datasets/org/dev)." in text
    assert "License: acme: 'free'." in text


@pytest.mark.parametrize("value", NASTY)
def test_any_value_is_quoted(value: str, tmp_path: Path) -> None:
    data = ModelCardData(
        tags=[value], license_name=value, model_name=value, base_model=value, language=value
    )
    found, text = saved(tmp_path, data, prompts={value: value}, facts={value: value})
    assert found["tags"] == ["first", "nomicbert", value]
    assert found["language"] == [value]
    assert (found["license"], found["license_name"]) == ("other", value)
    assert found["base_model"] == value
    line = " ".join(value.split())
    assert f"# {line}\n" in text
    assert f"| {line} | {line.replace('|', chr(92) + '|')} |" in text


def test_nothing_is_invented(tmp_path: Path) -> None:
    found, text = saved(tmp_path, ModelCardData())
    assert found == {
        "library_name": "sentence-transformers",
        "pipeline_tag": "sentence-similarity",
        "tags": ["first", "nomicbert"],
    }
    assert "The base model is not recorded." in text
    assert "The license is not recorded." in text
    assert 'Embedder("path/to/this/folder")' in text
    for word in ("## Evaluation", "data:", "## Prompts"):
        assert word not in text


def origins() -> Iterator[tuple[Origin, ModelCardData, Any, str, str]]:
    """Origin, data, base model in the metadata, license there, and a sentence."""
    stated = {"license": "cc-by-nc-4.0"}
    cached = Origin("org/base", "c0ffee", license=stated)
    local = Origin(base_models=("org/older",), license=stated)
    yield cached, ModelCardData(), "org/base", "cc-by-nc-4.0", "commit `c0ffee`. Whether it was"
    yield local, ModelCardData(), "org/older", "cc-by-nc-4.0", "by the card of the folder"
    own = ModelCardData(base_model="org/mine", base_model_revision="v2", license="mit")
    yield cached, own, "org/mine", "mit", "Base model: [org/mine]"
    yield cached, ModelCardData(license="mit"), "org/base", "mit", "License: mit.\n"
    yield cached, ModelCardData(), "org/base", "cc-by-nc-4.0", "cc-by-nc-4.0, taken over from"


@pytest.mark.parametrize(("origin", "data", "base", "license", "sentence"), [*origins()])
def test_where_it_comes_from(
    origin: Origin, data: ModelCardData, base: str, license: str, sentence: str, tmp_path: Path
) -> None:
    found, text = saved(tmp_path, data, origin)
    assert (found["base_model"], found["license"]) == (base, license)
    assert sentence in text
    assert f"# Embedder based on {base}\n" in text


def test_a_model_is_not_its_own_base(tmp_path: Path) -> None:
    own = ModelCardData(model_id="org/base")
    found, text = saved(tmp_path, own, Origin("org/base", "c0ffee"))
    assert "base_model" not in found
    assert "commit `c0ffee`" in text
    own = ModelCardData(model_id="org/base", base_model="org/base")
    found, text = saved(tmp_path, own)
    assert "base_model" not in found
    assert "The base model is not recorded." in text


def test_all_base_models_of_a_folder(tmp_path: Path) -> None:
    found, text = saved(tmp_path, ModelCardData(), Origin(base_models=("a/b", "c/d")))
    assert found["base_model"] == ["a/b", "c/d"]
    assert "(https://huggingface.co/a/b), [c/d](https://huggingface.co/c/d), by the card" in text


def test_only_the_name_of_the_model_is_put_in(tmp_path: Path) -> None:
    _, text = saved(tmp_path, ModelCardData(), snippets=(Snippet("x", "f(MODEL, 'MODEL ')"),))
    assert """f("path/to/this/folder", 'MODEL ')""" in text


def test_a_licence_is_not_mixed_with_another(tmp_path: Path) -> None:
    origin = Origin(license={"license": "other", "license_name": "acme"})
    found, text = saved(tmp_path, ModelCardData(license="mit"), origin)
    assert (found["license"], "license_name" in found) == ("mit", False)
    assert "acme" not in text


def test_a_result_that_is_no_number_is_no_metadata(tmp_path: Path) -> None:
    data = ModelCardData()
    data.set_evaluation_metrics(TripletEvaluator(), {"accuracy": float("nan")})
    found, text = saved(tmp_path, data)
    assert "model-index" not in found
    assert "| accuracy | nan |" in text


def test_examples_are_of_similarity_only(tmp_path: Path) -> None:
    data = ModelCardData()
    data.set_widget_examples([{"q": "a", "a": "b"}])
    assert "widget" in saved(tmp_path, data)[0]
    assert "widget" not in saved(tmp_path, data, pipeline_tag="text-ranking")[0]


def test_half_a_character_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'\\ud800', half of a surrogate pair"):
        model_card.render(card(), ModelCardData(model_name="a\ud800"), Origin())


def test_data_that_was_set_wrong_is_refused() -> None:
    data = ModelCardData()
    data.license = 3  # type: ignore[assignment]
    with pytest.raises(TypeError, match="license must be a string"):
        model_card.render(card(), data, Origin())


@pytest.mark.parametrize("kind", ["file", "empty", "folder", "lost link"])
def test_a_card_is_never_replaced(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    if kind == "folder":
        path.mkdir()
    elif kind == "lost link":
        path.symlink_to(tmp_path / "nowhere")
    else:
        path.write_text("" if kind == "empty" else "mine", "utf-8")
    assert model_card.has_card(tmp_path)
    assert not model_card.write(tmp_path, "new")
    assert [each.name for each in tmp_path.iterdir()] == ["README.md"]
    if kind in ("file", "empty"):
        assert path.read_text("utf-8") == ("mine" if kind == "file" else "")


def test_half_a_card_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.FileIO):
        def write(self, content: Any) -> int:
            super().write(content[:10])
            raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(Path, "open", lambda path, mode: Full(path, mode.replace("b", "")))
    with pytest.raises(OSError, match="no space left"):
        model_card.write(tmp_path, "---\ntags: []\n---\n")
    assert not model_card.has_card(tmp_path)
