"""What the tests of deploy/ share: its files as data, and the options of `nomicbert serve`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from nomicbert.cli import serve as command
from nomicbert.serve import server
from nomicbert.serve.app import PAGES
from nomicbert.serve.engine.engine import STOP
from nomicbert.serve.settings import ServeSettings
from nomicbert.serve.tracing import FLUSH_SECONDS
from tests.support.command_line import run_cli
from tests.support.environment import documented

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
# Paths of GET routes that need no key.
PROBES = {page.path for page in PAGES if page.method == "GET" and page.is_open}
OURS = re.compile(r"\bNOMICBERT_\w+")


class Step(NamedTuple):
    """An instruction of a Dockerfile."""

    name: str
    value: str


def dockerfile() -> dict[str, list[Step]]:
    """Stage -> its instructions; "" has those before the first one."""
    text = (DEPLOY / "Dockerfile").read_text("utf-8")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    stages: dict[str, list[Step]] = {"": []}
    stage = ""
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        name, _, value = line.strip().partition(" ")
        if name == "FROM":
            stage = value.split(" AS ")[1]
            stages[stage] = []
        stages[stage].append(Step(name, " ".join(value.split())))
    return stages


def steps_of(stage: str, variant: str = "cpu") -> list[Step]:
    """All instructions that a stage inherits, in order, for a VARIANT."""
    stages = dockerfile()
    own = stages[stage]
    base = own[0].value.split(" AS ")[0].replace("${VARIANT}", variant)
    return [*(steps_of(base, variant) if base in stages else []), *own]


def environment_of(steps: list[Step]) -> dict[str, str]:
    """The variables that ENV instructions set."""
    found: dict[str, str] = {}
    for step in steps:
        if step.name == "ENV":
            found |= dict(pair.split("=", 1) for pair in step.value.split(" "))
    return found


def documents(path: Path) -> list[dict[str, Any]]:
    """The YAML documents of a file."""
    return list(yaml.safe_load_all(path.read_text("utf-8")))


def compose() -> dict[str, Any]:
    (found,) = documents(DEPLOY / "compose.yaml")
    return found


def resource(folder: str, name: str) -> dict[str, Any]:
    """The only resource of a manifest."""
    (found,) = documents(KUBERNETES / folder / f"{name}.yaml")
    return found


def known_variables() -> set[str]:
    """Variables of options of `nomicbert serve`, and those that docs/environment.md lists."""
    options = {f"NOMICBERT_{name.upper()}" for name in inspect.signature(command.serve).parameters}
    page = (ROOT / "docs/environment.md").read_text("utf-8")
    return options | set(documented(page)[0])


def settings_from(variables: Mapping[str, str], patch: pytest.MonkeyPatch) -> ServeSettings:
    """What `nomicbert serve` without arguments makes of variables; nothing is served."""
    found: list[ServeSettings] = []
    patch.setattr(server, "run", lambda settings, *_: found.append(settings))
    for name, value in variables.items():
        patch.setenv(name, value)
    code, out, err = run_cli("serve")
    assert (code, out, err) == (0, "", ""), err
    return found[0]


def least_grace(settings: ServeSettings) -> float:
    """Seconds that an orderly end may take: drain, grace, the last batch, the last traces."""
    return settings.drain_seconds + settings.grace_seconds + STOP + FLUSH_SECONDS
