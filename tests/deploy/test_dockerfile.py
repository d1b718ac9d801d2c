"""The image, as far as a machine without Docker can tell: its steps are held to the code."""

from __future__ import annotations

import fnmatch
import http.server
import json
import re
import shutil
import socket
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.support.command_line import run_python
from tests.support.deployment import (
    DEPLOY,
    OURS,
    PROBES,
    ROOT,
    Step,
    dockerfile,
    environment_of,
    known_variables,
    settings_from,
    steps_of,
)
from tests.support.rerankers import build_reranker
from tests.support.served import tiny

FINAL = ("server", "with-model")
VARIANTS = ("cpu", "cuda")
HEALTHCHECK = DEPLOY / "healthcheck.py"
SECRETS = re.compile(r"(?i)key|token|secret|password")


def values(steps: list[Step], name: str) -> list[str]:
    return [step.value for step in steps if step.name == name]


def project() -> str:
    return (ROOT / "pyproject.toml").read_text("utf-8")


def python_of_the_image() -> str:
    (base,) = [value for value in values(dockerfile()[""], "ARG") if value.startswith("BASE=")]
    found = re.fullmatch(r"BASE=python:(\d+\.\d+)-slim-\w+", base)
    assert found, base
    return found[1]


def copied() -> list[str]:
    """What COPY takes from the clone."""
    every = [step.value for steps in dockerfile().values() for step in steps if step.name == "COPY"]
    return [
        source
        for value in every
        if not value.startswith("--from=")
        for source in value.split()[:-1]
    ]


def test_the_stages_are_found() -> None:
    assert set(dockerfile()) >= {"build", "torch-cpu", "torch-cuda", "runtime", *FINAL}
    # the last stage is built by default
    assert list(dockerfile())[-1] == "server"
    for variant in VARIANTS:
        names = {step.value for step in steps_of("server", variant) if step.name == "FROM"}
        assert f"${{BASE}} AS runtime-{variant}" in names


def test_the_python_is_one_that_is_supported() -> None:
    assert f"Programming Language :: Python :: {python_of_the_image()}" in project()


def test_variables_are_those_of_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (DEPLOY / "Dockerfile").read_text("utf-8")
    assert {"NOMICBERT_HOST", "NOMICBERT_PORT"} <= set(OURS.findall(text)) <= known_variables()
    image = environment_of(steps_of("server"))
    settings = settings_from(
        {"NOMICBERT_MODEL": "model"} | {k: v for k, v in image.items() if OURS.match(k)},
        monkeypatch,
    )
    assert settings.host == "0.0.0.0"  # other containers connect
    assert [str(settings.port)] == values(steps_of("server"), "EXPOSE")
    assert {"/models", "/tmp"} == {image["HF_HOME"], image["HOME"]}
    baked = environment_of(steps_of("with-model"))
    # a volume at /models must not hide the model
    assert not baked["HF_HOME"].startswith("/models")
    assert (baked["NOMICBERT_LOCAL_FILES_ONLY"], baked["HF_HUB_OFFLINE"]) == ("1", "1")


def test_a_model_of_any_kind_is_fetched(tmp_path: Path) -> None:
    """The step of `with-model` runs here, on folders in place of repositories."""
    (code,) = [
        found[1]
        for value in values(steps_of("with-model"), "RUN")
        if (found := re.search(r'python -c "([^"]*hub[^"]*)"', value))
    ]
    for folder in (tiny(tmp_path), build_reranker(tmp_path / "reranker")):
        assert run_python("-c", code, str(folder), "main").returncode == 0
    assert run_python("-c", code, str(tmp_path / "none"), "main").returncode != 0


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("stage", FINAL)
def test_how_the_server_is_started_and_stopped(stage: str, variant: str) -> None:
    steps = steps_of(stage, variant)
    user, group = values(steps, "USER")[-1].split(":")
    assert user.isdecimal()
    assert user == group
    assert int(user) >= 1000
    assert any(f"--uid {user} --gid {group}" in value for value in values(steps, "RUN"))
    # as a list, without a shell in between, which would keep the signal
    assert [json.loads(value) for value in values(steps, "ENTRYPOINT")] == [["nomicbert", "serve"]]
    assert 'nomicbert = "nomicbert.cli:main"' in project()
    assert values(steps, "CMD") == []
    assert values(steps, "STOPSIGNAL") == ["SIGTERM"]


def test_what_pip_installs_is_pinned_and_exists() -> None:
    commands = [
        command.strip()
        for steps in dockerfile().values()
        for value in values(steps, "RUN")
        for command in value.split("&&")
        if "pip" in command and " install " in command
    ]
    installed = " ".join(commands)
    assert len(commands) == 4
    assert all("--constraint constraints.txt" in command for command in commands)
    (extras,) = re.findall(r"\.whl\)\[([\w,]+)\]", installed)
    (table,) = re.findall(r"\[project\.optional-dependencies\]\n(.*?)\n\[", project(), re.S)
    for extra in extras.split(","):
        assert re.search(rf"^{extra} = ", table, re.M), extra
    pins = (ROOT / "constraints.txt").read_text("utf-8")
    for name in ("torch", "hatchling", "uvicorn", "opentelemetry-sdk"):
        assert re.search(rf"^{name}==", pins, re.M), name


def test_only_what_is_copied_may_enter_the_image() -> None:
    lines = (DEPLOY / "Dockerfile.dockerignore").read_text("utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    allowed = {rule[1:] for rule in rules if rule.startswith("!")}
    assert allowed == set(copied())
    assert all((ROOT / source).exists() for source in allowed)
    assert rules[-2:] == ["**/__pycache__", "**/*.py[cod]"]
    tracked = subprocess.run(
        ["git", "ls-files", *sorted(allowed)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if tracked.returncode == 0:  # not in an unpacked sdist
        names = tracked.stdout.splitlines()
        assert len(names) > 100
        assert not [name for name in names if fnmatch.fnmatch(name, "*.env*") or "/.git" in name]


def test_no_secret_is_in_a_layer() -> None:
    for steps in dockerfile().values():
        for step in steps:
            if step.name in ("ARG", "ENV"):
                names = [pair.partition("=")[0] for pair in step.value.split(" ")]
                assert not [name for name in names if SECRETS.search(name)], step
            elif step.name == "RUN" and SECRETS.search(step.value):
                assert step.value.startswith("--mount=type=secret,id=hf_token,env=HF_TOKEN "), step


def test_the_wheel_builds_from_what_is_copied(tmp_path: Path) -> None:
    """The files of the image's build stage give the same wheel as the whole clone."""
    source = tmp_path / "source"
    source.mkdir()
    for name in copied():
        place = ROOT / name
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        if place.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.py[cod]")
            shutil.copytree(place, source / name, ignore=ignored)
        else:
            shutil.copy(place, source / name)
    contents = []
    for number, folder in enumerate((source, ROOT)):
        into = tmp_path / str(number)
        command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(into)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        (wheel,) = into.glob("nomicbert-*.whl")  # the pattern of the Dockerfile
        contents.append({n.filename: n.CRC for n in zipfile.ZipFile(wheel).infolist()})
    assert contents[0] == contents[1]


def test_hadolint(tmp_path: Path) -> None:
    """A linter of Dockerfiles; a mistake is seen."""
    tool = Path(sys.executable).with_name("hadolint")
    if not tool.exists():
        pytest.skip("`make test-deploy` has hadolint")
    text = (DEPLOY / "Dockerfile").read_text("utf-8")
    wrong = tmp_path / "Dockerfile"
    wrong.write_text(
        text.replace('ENTRYPOINT ["nomicbert", "serve"]', "ENTRYPOINT nomicbert serve")
    )
    for path, code in ((DEPLOY / "Dockerfile", 0), (wrong, 1)):
        done = subprocess.run([tool, path], capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stdout
    assert "DL3025" in done.stdout  # a command should be a list


# --- HEALTHCHECK ---


@contextmanager
def answering(status: int) -> Iterator[tuple[int, list[str]]]:
    """A server that answers every GET with this status: its port, and the paths asked for."""
    paths: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_address[1], paths
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def health(port: int) -> int:
    # a proxy of the environment must not be asked
    variables = {"NOMICBERT_PORT": str(port), "http_proxy": "http://127.0.0.1:9"}
    return run_python("-I", str(HEALTHCHECK), env=variables).returncode


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1), (404, 1)])
def test_the_health_check(status: int, code: int) -> None:
    with answering(status) as (port, paths):
        assert health(port) == code
    assert len(paths) == 1
    assert set(paths) <= PROBES


def test_the_health_check_without_a_server() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    assert health(port) == 1


def test_the_health_check_is_in_the_image() -> None:
    steps = steps_of("server")
    (value,) = values(steps, "HEALTHCHECK")
    command = json.loads(value.partition("CMD ")[2])
    assert command[0] == "python"
    assert f"deploy/healthcheck.py {command[1]}" in values(steps, "COPY")
