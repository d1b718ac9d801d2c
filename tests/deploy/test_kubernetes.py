"""The manifests: Kubernetes' own schemas, and what they say of the image and the server."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nomicbert.serve.metrics import Metrics
from tests.support.command_line import run_cli, run_python
from tests.support.deployment import (
    DEPLOY,
    KUBERNETES,
    OURS,
    PROBES,
    documents,
    environment_of,
    known_variables,
    least_grace,
    resource,
    settings_from,
    steps_of,
)

# A custom resource of the Prometheus operator, and files that are no resources.
WITHOUT_SCHEMA = {"kustomization.yaml", "servicemonitor.yaml", "adapter-values.yaml"}
# A patch lacks what its target has.
PATCHES = {"gpu/deployment.yaml"}
METRIC = "nomicbert_queue_seconds_ahead"


def manifests() -> list[str]:
    return sorted(str(path.relative_to(KUBERNETES)) for path in KUBERNETES.rglob("*.yaml"))


def deployment() -> dict[str, Any]:
    return resource("base", "deployment")


def pod() -> dict[str, Any]:
    return deployment()["spec"]["template"]["spec"]


def container() -> dict[str, Any]:
    (found,) = pod()["containers"]
    return found


def values_of(env: list[dict[str, Any]]) -> dict[str, str]:
    """Variables with values, as in a pod: a key of the Secret, and the limit of cores."""
    found = {}
    for variable in env:
        source = variable.get("valueFrom", {})
        if "secretKeyRef" in source:
            found[variable["name"]] = "nk-first nk-second"
        elif "resourceFieldRef" in source:
            assert source["resourceFieldRef"] == {"resource": "limits.cpu"}
            found[variable["name"]] = container()["resources"]["limits"]["cpu"]
        else:
            found[variable["name"]] = variable["value"]
    return found


def test_the_manifests_are_found() -> None:
    assert {"base/deployment.yaml", "gpu/kustomization.yaml"} <= set(manifests())


def validated() -> list[Path]:
    names = [name for name in manifests() if Path(name).name not in WITHOUT_SCHEMA]
    return [KUBERNETES / name for name in names if name not in PATCHES]


@pytest.mark.parametrize("version", ["1.28.0", "1.37.0"])
def test_the_schemas(tmp_path: Path, version: str) -> None:
    """Those of Kubernetes, strictly; a mistake is seen."""
    pytest.importorskip("kubernetes_validate", reason="`make test-deploy` has the schemas")
    check = ("-m", "kubernetes_validate", "--strict", "--kubernetes-version", version)
    files = validated()
    assert len(files) == 4
    done = run_python(*check, *map(str, files))
    assert done.returncode == 0, done.stdout + done.stderr
    wrong = tmp_path / "deployment.yaml"
    text = (KUBERNETES / "base/deployment.yaml").read_text("utf-8")
    wrong.write_text(text.replace("enableServiceLinks", "enableServiceLink"))
    assert run_python(*check, str(wrong)).returncode == 1


def test_variables_are_those_of_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    image = environment_of(steps_of("server"))
    own = values_of(container()["env"])
    patch = resource("gpu", "deployment")["spec"]["template"]["spec"]["containers"][0]
    assert set(filter(OURS.match, own | values_of(patch["env"]))) <= known_variables()
    given = {k: v for k, v in (image | own).items() if OURS.match(k)}
    settings = settings_from(given, monkeypatch)
    assert settings.api_keys == ("nk-first", "nk-second")
    assert settings.open_metrics
    assert settings.threads == int(container()["resources"]["limits"]["cpu"])
    assert pod()["terminationGracePeriodSeconds"] > least_grace(settings)
    (port,) = container()["ports"]
    assert port["containerPort"] == settings.port


def test_the_key_is_the_secret_of_the_readme() -> None:
    (variable,) = [v for v in container()["env"] if v["name"] == "NOMICBERT_API_KEY"]
    assert "value" not in variable
    ref = variable["valueFrom"]["secretKeyRef"]
    command = f"kubectl create secret generic {ref['name']} --from-literal={ref['key']}="
    assert command in (DEPLOY / "README.md").read_text("utf-8")


def test_service_links_would_set_the_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kubernetes sets SERVICE_PORT=tcp://... in pods, and our Service has the package's name."""
    name = resource("base", "service")["metadata"]["name"]
    variable = f"{name.upper()}_PORT"
    assert variable in known_variables()
    monkeypatch.setenv(variable, "tcp://10.0.0.7:80")
    code, _, err = run_cli("serve", "-m", "model")
    assert code == 2
    assert "Invalid value for '--port'" in err
    assert pod()["enableServiceLinks"] is False


@pytest.mark.parametrize("name", ["startupProbe", "readinessProbe", "livenessProbe"])
def test_probes(name: str) -> None:
    probe = container()[name]
    (port,) = container()["ports"]
    assert probe["httpGet"]["port"] == port["name"]
    assert probe["httpGet"]["path"] in PROBES
    # a restart cannot help a server that is only loading or draining
    wanted = "/health/live" if name == "livenessProbe" else "/health/ready"
    assert probe["httpGet"]["path"] == wanted
    if name == "startupProbe":
        assert probe["periodSeconds"] * probe["failureThreshold"] >= 600


def test_the_drain_is_longer_than_a_load_balancer_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    probe = container()["readinessProbe"]
    settings = settings_from(values_of(container()["env"]), monkeypatch)
    unready = probe["periodSeconds"] * probe["failureThreshold"] + probe["timeoutSeconds"]
    assert settings.drain_seconds > unready


def test_the_pod_is_confined() -> None:
    (user,) = {step.value for step in steps_of("server") if step.name == "USER"}
    outer, inner = pod()["securityContext"], container()["securityContext"]
    assert outer["runAsNonRoot"] is True
    assert f"{outer['runAsUser']}:{outer['runAsGroup']}" == user
    assert outer["fsGroup"] == outer["runAsGroup"]
    assert outer["seccompProfile"] == {"type": "RuntimeDefault"}
    assert inner["allowPrivilegeEscalation"] is False
    assert inner["readOnlyRootFilesystem"] is True
    assert inner["capabilities"] == {"drop": ["ALL"]}
    assert pod()["automountServiceAccountToken"] is False
    image = environment_of(steps_of("server"))
    mounts = {mount["mountPath"]: mount["name"] for mount in container()["volumeMounts"]}
    assert set(mounts) == {image["HF_HOME"], image["HOME"]}
    assert set(mounts.values()) == {volume["name"] for volume in pod()["volumes"]}


def test_everything_selects_the_pods() -> None:
    labels = deployment()["spec"]["template"]["metadata"]["labels"]
    service = resource("base", "service")
    selectors = [
        deployment()["spec"]["selector"]["matchLabels"],
        service["spec"]["selector"],
        resource("base", "disruption")["spec"]["selector"]["matchLabels"],
    ]
    assert all(selector.items() <= labels.items() for selector in selectors)
    monitor = resource("autoscaling", "servicemonitor")["spec"]
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    (port,) = service["spec"]["ports"]
    (endpoint,) = monitor["endpoints"]
    assert endpoint["port"] == port["name"]
    assert port["targetPort"] == container()["ports"][0]["name"]
    scaled = resource("autoscaling", "autoscaler")["spec"]["scaleTargetRef"]
    assert (scaled["kind"], scaled["name"]) == ("Deployment", deployment()["metadata"]["name"])


def test_the_autoscalers_metric_exists() -> None:
    (metric,) = resource("autoscaling", "autoscaler")["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] == METRIC
    (rule,) = documents(KUBERNETES / "autoscaling/adapter-values.yaml")[0]["rules"]["custom"]
    assert re.fullmatch(rule["name"]["matches"], METRIC)
    assert rule["name"]["as"] == METRIC
    assert rule["seriesQuery"].startswith(f"{METRIC}{{")
    rendered = Metrics([("openai", "/v1/embeddings")], ["m"]).render().decode()
    assert f"\n{METRIC} 0.0\n" in rendered


# --- kustomize, which is not at hand: what its files refer to exists ---


def references() -> Iterator[tuple[Path, str]]:
    for path in sorted(KUBERNETES.rglob("kustomization.yaml")):
        (found,) = documents(path)
        for name in found.get("resources", []):
            yield path.parent, name
        for patch in found.get("patches", []):
            if "path" in patch:
                yield path.parent, patch["path"]


def test_what_kustomizations_refer_to_exists() -> None:
    found = list(references())
    assert len(found) >= 7
    for folder, name in found:
        place = (folder / name).resolve()
        assert place.is_file() or (place / "kustomization.yaml").is_file(), place
    used = {(folder / name).resolve() for folder, name in found}
    others = {"kustomization.yaml", "adapter-values.yaml"}
    files = {path.resolve() for path in KUBERNETES.rglob("*.yaml") if path.name not in others}
    assert files <= used


def test_the_patch_for_gpus_fits_its_target() -> None:
    patch = resource("gpu", "deployment")
    target = deployment()
    for key in ("apiVersion", "kind"):
        assert patch[key] == target[key]
    assert patch["metadata"]["name"] == target["metadata"]["name"]
    (own,) = patch["spec"]["template"]["spec"]["containers"]
    assert own["name"] == container()["name"]
    assert own["resources"]["limits"]["nvidia.com/gpu"] == "1"
    merged = copy.deepcopy(container()["resources"])
    for kind, amounts in own["resources"].items():
        merged[kind] |= amounts
    assert set(merged["limits"]) == {"cpu", "memory", "nvidia.com/gpu"}
    (name,) = {
        image["name"] for image in documents(KUBERNETES / "gpu/kustomization.yaml")[0]["images"]
    }
    (base,) = documents(KUBERNETES / "base/kustomization.yaml")[0]["images"]
    assert name == base["newName"]
    assert base["name"] == container()["image"]
