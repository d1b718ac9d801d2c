"""loading.origin: a checkpoint of the cache, a folder, and what their cards state."""

from __future__ import annotations

from pathlib import Path

import pytest

from nomicbert.loading.license import read_front
from nomicbert.loading.origin import Origin

CARD = """---
license: other
license_name: 'acme'
license_link: https://x.org/a#license
base_model: a/b
---"""


def test_a_folder_of_the_cache(tmp_path: Path) -> None:
    folder = tmp_path / "models--org--my-model" / "snapshots" / "c0ffee"
    folder.mkdir(parents=True)
    assert Origin.of(folder) == Origin("org/my-model", "c0ffee")
    assert Origin.of(folder).name == "org/my-model"
    assert Origin.of(tmp_path).name == str(tmp_path)
    (folder / "README.md").write_text(CARD, "utf-8")
    stated = {"license": "other", "license_name": "acme", "license_link": "https://x.org/a#license"}
    # its base model is not ours: we were loaded from the repository itself
    assert Origin.of(folder) == Origin("org/my-model", "c0ffee", license=stated)


def test_a_folder_below_one_of_the_cache(tmp_path: Path) -> None:
    """Its repository is known, and so is the licence if the folder states none."""
    root = tmp_path / "models--org--my-model" / "snapshots" / "c0ffee"
    folder = root / "a" / "b"
    folder.mkdir(parents=True)
    (root / "README.md").write_text("---\nlicense: mit\n---", "utf-8")
    assert Origin.of(folder) == Origin("org/my-model", "c0ffee", license={"license": "mit"})
    (folder / "README.md").write_text("---\nlicense: cc0-1.0\n---", "utf-8")
    assert Origin.of(folder) == Origin("org/my-model", "c0ffee", license={"license": "cc0-1.0"})


def test_lists_in_a_card(tmp_path: Path) -> None:
    """All base models; of several licences none is the one."""
    front = "license:\n- mit\n- cc0-1.0\nbase_model:\n- a/b\n- ./c\n- d/e"
    (tmp_path / "README.md").write_text(f"---\n{front}\n---\n", "utf-8")
    assert Origin.of(tmp_path) == Origin(base_models=("a/b", "d/e"))
    (tmp_path / "README.md").write_text("---\nlicense:\n- mit\n---\n", "utf-8")
    assert Origin.of(tmp_path) == Origin(license={"license": "mit"})
    (tmp_path / "README.md").write_text("---\nlicense: null\n---\n", "utf-8")
    assert Origin.of(tmp_path) == Origin()


def test_a_local_folder(tmp_path: Path) -> None:
    assert Origin.of(tmp_path) == Origin()
    (tmp_path / "README.md").write_text(CARD, "utf-8")
    found = Origin.of(tmp_path)
    assert (found.repo_id, found.base_models) == ("", ("a/b",))
    assert found.license["license_name"] == "acme"


@pytest.mark.parametrize(
    ("front", "base"),
    [
        ("base_model: org/x  # mine", ["org/x"]),
        ("base_model:\n- org/x\n- org/y", ["org/x", "org/y"]),
        ("base_model: \n  - 'org/x' # mine", ["org/x"]),
        ("tags:\n- org/x\nbase_model:", None),
        ("other:\n  base_model: org/x", None),
    ],
)
def test_the_base_model_in_a_card(front: str, base: list[str] | None, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(f"---\n{front}\n---\n", "utf-8")
    assert read_front(tmp_path).get("base_model") == base


@pytest.mark.parametrize(
    "value", [">-", "[a/b, c/d]", "/home/me/model", "./model", "a/b/c", "&x a/b"]
)
def test_what_is_no_repository_is_no_base_model(value: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(f"---\nbase_model: {value}\nlicense: |\n---\n", "utf-8")
    assert Origin.of(tmp_path) == Origin()
