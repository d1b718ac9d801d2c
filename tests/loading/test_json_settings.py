"""JSON settings: every mistake in a file is a ConfigError that names the file and the key."""

from pathlib import Path
from typing import Any

import pytest

from nomicbert.errors import ConfigError
from nomicbert.loading.json_settings import Settings, inside, read_json, read_json_list

PATH = Path("folder/config.json")


def settings(**raw: Any) -> Settings:
    return Settings(raw, PATH)


def test_an_object_and_a_list_are_read(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text('{"query": "为", "n": 1.5}', "utf-8")
    assert read_json(file) == {"query": "为", "n": 1.5}
    file.write_text('[{"idx": 0}, {}]')
    assert read_json_list(file) == [{"idx": 0}, {}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "a.json is not JSON"),
        (b'{"a": ', "a.json is not JSON"),
        (b'{"a": "\xff"}', "a.json is not JSON"),
        (b"[1]", "must hold a JSON object, not list"),
        (b'"bert"', "must hold a JSON object, not str"),
        (b"null", "must hold a JSON object, not NoneType"),
    ],
)
def test_a_file_that_is_no_object(content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_json(file)


@pytest.mark.parametrize("content", ["{}", "[1]", '[{}, "x"]', "3"])
def test_a_file_that_is_no_list_of_objects(content: str, tmp_path: Path) -> None:
    file = tmp_path / "modules.json"
    file.write_text(content)
    with pytest.raises(ConfigError, match=r"modules.json must hold a JSON list of objects"):
        read_json_list(file)


def test_a_missing_file_names_the_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"config.json is missing: is {tmp_path} a checkpoint"):
        read_json(tmp_path / "config.json")


def test_several_names_of_one_key() -> None:
    assert settings(n_embd=64).get("n_embd", "hidden_size") == 64
    assert settings(hidden_size=64).get("n_embd", "hidden_size") == 64
    assert settings(n_embd=None, hidden_size=64).get("n_embd", "hidden_size") == 64
    assert settings(n_embd=64.0, hidden_size=64).get("n_embd", "hidden_size") == 64
    assert settings(a=False).get("a", default=True) is False
    assert settings(a=None).get("a", default="x") == "x"
    with pytest.raises(ConfigError, match=r"lacks n_embd \(or hidden_size\)$"):
        settings(n_embd=None).get("n_embd", "hidden_size")
    with pytest.raises(ConfigError, match=r"folder.config.json lacks a$"):
        settings().get("a")


def test_two_values_of_one_key_are_named() -> None:
    with pytest.raises(
        ConfigError, match=r"contradicts itself: n_embd = 64 but hidden_size = 96\. Correct one"
    ):
        settings(n_embd=64, hidden_size=96).get("n_embd", "hidden_size")
    # true is not accepted as 1, although True == 1 in Python
    with pytest.raises(ConfigError, match="a = True but b = 1"):
        settings(a=True, b=1).get("a", "b")


def test_numbers() -> None:
    size = settings(a=2048.0).size("a")
    assert (size, type(size)) == (2048, int)
    assert settings(a=1e-12).number("a") == 1e-12
    assert settings().number("a", default=0.1) == 0.1
    assert isinstance(settings(a=0.0).number("a"), float)
    assert isinstance(settings(a=1).number("a"), float)
    assert settings().size("a", default=0) == 0
    for wrong in ("768", True, [768], {}):
        with pytest.raises(ConfigError, match="a must be a number, not "):
            settings(a=wrong).size("a")
    for wrong in (2048.5, float("inf"), float("nan")):
        with pytest.raises(ConfigError, match="a must be a whole number, not "):
            settings(a=wrong).size("a")


def test_refused_switches() -> None:
    neutral = {"prenorm": (False,), "xpos": ()}
    settings(prenorm=False, xpos=None).refuse(neutral)
    settings(prenorm=None).refuse(neutral)
    with pytest.raises(ConfigError, match="prenorm = True is not supported, only False or None is"):
        settings(prenorm=True).refuse(neutral)
    with pytest.raises(ConfigError, match="xpos = 512 is not supported, only None is"):
        settings(xpos=512).refuse(neutral)


def test_paths_stay_inside(tmp_path: Path) -> None:
    assert inside(tmp_path, "", PATH) == tmp_path
    assert inside(tmp_path, "1_Pooling", PATH) == tmp_path / "1_Pooling"
    for path in ("..", "../x", "a/../../x", "/etc", 3, None):
        with pytest.raises(ConfigError, match=r"config.json names the path .* leaves its folder"):
            inside(tmp_path, path, PATH)
