"""docs/ray.md and examples/ray_embed.py: what can be checked without a cluster."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest

from tests.support.documents import ROOT, blocks

PAGE = ROOT / "docs" / "ray.md"
EXAMPLE = ROOT / "examples" / "ray_embed.py"


def test_the_snippets_are_python() -> None:
    """They run by hand: each needs a cluster, or an environment of its own."""
    snippets = blocks(PAGE, "py")
    assert len(snippets) >= 5
    for snippet in snippets:
        compile(snippet, str(PAGE), "exec")


def test_the_manifest_starts_the_example() -> None:
    yaml: Any = pytest.importorskip("yaml")
    (text,) = blocks(PAGE, "yaml")
    spec = yaml.safe_load(text)["spec"]
    command = shlex.split(spec["entrypoint"])
    assert command[:2] == ["python", f"/app/{EXAMPLE.relative_to(ROOT)}"]
    known = set(re.findall(r'add_argument\("(--[a-z-]+)"', EXAMPLE.read_text("utf-8")))
    assert {word for word in command if word.startswith("--")} <= known
    # the pool fits: two CPUs stay free for reading, writing and the checkpoint
    workers, cpus, gpus = (
        float(command[command.index(option) + 1])
        for option in ("--workers", "--num-cpus", "--num-gpus")
    )
    (group,) = spec["rayClusterSpec"]["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    limits = container["resources"]["limits"]
    assert workers * cpus + 2 <= group["replicas"] * float(limits["cpu"])
    assert workers * gpus <= group["replicas"] * float(limits["nvidia.com/gpu"])
    assert spec["rayClusterSpec"]["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
