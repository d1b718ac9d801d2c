"""The compose file: its schema, and what it says of the image and the server."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.support.command_line import run_python
from tests.support.deployment import (
    DEPLOY,
    OURS,
    ROOT,
    compose,
    dockerfile,
    environment_of,
    known_variables,
    least_grace,
    settings_from,
    steps_of,
)

SERVICES = ("server", "gpu")


@pytest.fixture(params=SERVICES)
def service(request: pytest.FixtureRequest) -> dict[str, Any]:
    return compose()["services"][request.param]


def seconds(text: str) -> float:
    number, unit = re.fullmatch(r"(\d+)([sm])", text).groups()  # type: ignore[union-attr]
    return float(number) * {"s": 1, "m": 60}[unit]


def test_the_schema(tmp_path: Any) -> None:
    """That of the Compose Specification; a mistake is seen."""
    check = ("-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec")
    done = run_python(*check, str(DEPLOY / "compose.yaml"))
    assert done.returncode == 0, done.stdout
    wrong = tmp_path / "compose.yaml"
    text = (DEPLOY / "compose.yaml").read_text("utf-8")
    wrong.write_text(text.replace("read_only: true", "readonly: true"))
    assert run_python(*check, str(wrong)).returncode == 1


def test_what_is_built_exists(service: dict[str, Any]) -> None:
    build = service["build"]
    folder = (DEPLOY / build["context"]).resolve()
    assert folder == ROOT
    assert (folder / build["dockerfile"]).is_file()
    assert build["target"] in dockerfile()
    assert f"torch-{build['args']['VARIANT']}" in dockerfile()


def test_variables_are_those_of_the_server(
    service: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = service["environment"]
    assert set(filter(OURS.match, variables)) <= known_variables()
    image = environment_of(steps_of("server"))
    given = {k: v for k, v in (image | variables).items() if OURS.match(k)}
    assert given["NOMICBERT_API_KEY"].startswith("${NOMICBERT_API_KEY:?")  # none is an error
    given["NOMICBERT_API_KEY"] = "nk-a"
    # variables of the shell that are not set
    given = {k: re.sub(r"\$\{\w+:-(.+)\}", r"\1", v) for k, v in given.items()}
    settings = settings_from(given, monkeypatch)
    assert settings.api_keys == ("nk-a",)
    assert settings.threads == 2
    cpus = service["deploy"]["resources"]["limits"]["cpus"]
    assert cpus == variables["NOMICBERT_THREADS"] == "${CPUS:-2}"
    assert service["ports"] == [f"127.0.0.1:8080:{settings.port}"]
    assert seconds(service["stop_grace_period"]) > least_grace(settings)


def test_the_container_is_confined(service: dict[str, Any]) -> None:
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "user" not in service  # the image's
    # what the server writes to
    image = environment_of(steps_of("server"))
    writable = {place.split(":")[0] for place in service["tmpfs"]}
    writable |= {volume.split(":")[1] for volume in service["volumes"]}
    assert {image["HF_HOME"], image["HOME"]} == writable


def test_the_health_check_is_the_images(service: dict[str, Any]) -> None:
    (value,) = [step.value for step in steps_of("server") if step.name == "HEALTHCHECK"]
    options, _, command = value.partition(" CMD ")
    own = service["healthcheck"]
    assert own["test"] == ["CMD", *json.loads(command)]
    for name in ("interval", "timeout", "start_period", "retries"):
        assert f"--{name.replace('_', '-')}={own[name]}" in options


def test_the_gpu_is_asked_for() -> None:
    services = compose()["services"]
    assert services["gpu"]["profiles"] == ["gpu"]
    assert "profiles" not in services["server"]
    (device,) = services["gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    assert services["gpu"]["environment"]["NOMICBERT_DEVICE"] == "cuda"
    assert services["gpu"]["image"] != services["server"]["image"]
