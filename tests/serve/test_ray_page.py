"""docs/ray-serve.md and examples/rayservice.yaml: what can be checked without a cluster."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import shlex
from typing import Any

import pytest

from nomicbert.serve.cluster.resources import Replicas
from nomicbert.serve.ray import app
from tests.support.documents import ROOT, blocks

yaml = pytest.importorskip("yaml")
pytestmark = [
    pytest.mark.skipif(
        not (importlib.util.find_spec("ray") and importlib.util.find_spec("fastapi")),
        reason="Ray Serve is not installed: pip install '.[ray]'",
    ),
    # Ray Serve's own classes, when they are imported
    pytest.mark.filterwarnings(
        "ignore:Using extra keyword arguments on `Field`:DeprecationWarning"
    ),
]
PAGE = ROOT / "docs" / "ray-serve.md"
MANIFEST = ROOT / "examples" / "rayservice.yaml"


def application(config: dict[str, Any]) -> Any:
    """What `app` makes of a configuration of Serve, which must be one."""
    from ray.serve.schema import ServeDeploySchema

    (found,) = ServeDeploySchema.model_validate(config).applications
    assert found.import_path == "nomicbert.serve.ray:app"
    return app(found.args)._bound_deployment


def test_the_snippets_are_python() -> None:
    snippets = blocks(PAGE, "py")
    assert snippets
    for snippet in snippets:
        compile(snippet, str(PAGE), "exec")


def test_the_command_and_the_file_have_arguments_that_are_taken() -> None:
    (text,) = blocks(PAGE, "yaml")
    found = application(yaml.safe_load(text))
    assert found.ray_actor_options == {"num_cpus": 3, "num_gpus": 1}
    line = next(
        line for block in blocks(PAGE, "text") for line in block.splitlines() if "serve run" in line
    )
    given = shlex.split(line)
    assert given[:3] == ["serve", "run", "nomicbert.serve.ray:app"]
    scaled = app(dict(word.split("=") for word in given[3:]))._bound_deployment
    assert scaled._deployment_config.autoscaling_config.max_replicas == 4


def test_the_page_names_all_arguments() -> None:
    table = "\n".join(re.findall(r"^\| `.*$", PAGE.read_text("utf-8"), re.M))
    assert {field.name for field in dataclasses.fields(Replicas)} <= set(
        re.findall(r"`(\w+)`", table)
    )


def test_replicas_of_the_manifest_fit_its_machines() -> None:
    spec = yaml.safe_load(MANIFEST.read_text("utf-8"))["spec"]
    found = application(yaml.safe_load(spec["serveConfigV2"]))
    (group,) = spec["rayClusterConfig"]["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    limits = container["resources"]["limits"]
    assert found.ray_actor_options["num_cpus"] <= float(limits["cpu"]) - 1  # one for the proxy
    assert found.ray_actor_options["num_gpus"] == float(limits["nvidia.com/gpu"])
    scaling = found._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas) == (
        group["minReplicas"],
        group["maxReplicas"],
    )
    head = spec["rayClusterConfig"]["headGroupSpec"]
    assert head["rayStartParams"] == {"num-cpus": "0"}
