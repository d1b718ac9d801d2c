"""The server on Ray, as far as it needs no cluster: arguments, resources, autoscaling, health."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib.util
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nomicbert.serve import ray as on_ray
from nomicbert.serve.cluster.busy import Busy
from nomicbert.serve.cluster.resources import Replicas, place
from nomicbert.serve.cluster.scaling import AHEAD, BUSY, Scaling
from nomicbert.serve.ray import ServeSettings, app, deployment
from nomicbert.serve.settings import PLURALS
from tests.support.served import MODEL, tiny
from tests.support.serving import in_thread
from tests.support.warm_python import WarmPython

# Ray Serve's own classes, when they are imported
pytestmark = pytest.mark.filterwarnings(
    "ignore:Using extra keyword arguments on `Field`:DeprecationWarning"
)
HAS_RAY = importlib.util.find_spec("ray") and importlib.util.find_spec("fastapi")
needs_ray = pytest.mark.skipif(
    not HAS_RAY, reason="Ray Serve is not installed: pip install '.[ray]'"
)


def settings(**values: Any) -> ServeSettings:
    return ServeSettings(**{"models": ("m",), **values})


@pytest.mark.parametrize(
    ("given", "replicas", "wanted"),
    [
        ({}, {}, ("cpu", 1, 1, 0)),
        ({}, {"num_cpus": 3}, ("cpu", 3, 3, 0)),
        ({}, {"num_cpus": 0.5}, ("cpu", 1, 0.5, 0)),
        ({"threads": 2}, {}, ("cpu", 2, 2, 0)),
        ({"threads": 2}, {"num_cpus": 3}, ("cpu", 2, 3, 0)),
        ({"devices": ("cuda",)}, {}, ("cuda", 1, 1, 1)),
        ({}, {"num_gpus": 0.5}, ("cuda", 1, 1, 0.5)),
        ({"devices": ("cuda",)}, {"num_gpus": 2, "num_cpus": 0}, ("cuda", 1, 0, 2)),
        ({"devices": ("mps",)}, {}, ("mps", 1, 1, 0)),
    ],
    ids=str,
)
def test_resources(given: dict[str, Any], replicas: dict[str, Any], wanted: Any) -> None:
    placed, cpus, gpus = place(settings(**given), Replicas(**replicas))
    assert (*placed.devices, placed.threads, cpus, gpus) == wanted


def test_a_local_folder_is_found_from_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m").mkdir()
    monkeypatch.chdir(tmp_path)
    placed, _, _ = place(settings(models=("m", "owner/name")), Replicas())
    assert placed.models == (str(tmp_path / "m"), "owner/name")


@pytest.mark.parametrize(
    ("given", "replicas", "message"),
    [
        ({"devices": ("cuda", "cuda")}, {}, "give one device: a replica computes on one"),
        ({"devices": ("cuda:1",)}, {}, "give device 'cuda', not 'cuda:1': Ray decides"),
        ({"devices": ("cpu",)}, {"num_gpus": 1}, "device 'cpu' does not fit num_gpus=1"),
        ({"devices": ("cuda",)}, {"num_gpus": 0}, "device 'cuda' does not fit num_gpus=0"),
        ({"threads": 4}, {"num_cpus": 2}, "threads=4 need as many CPUs, not num_cpus=2"),
        ({}, {"num_cpus": -1}, "num_cpus must not be negative, but is -1"),
        ({}, {"min_replicas": 0}, "min_replicas must be more than 0, not 0"),
        ({}, {"min_replicas": 2, "max_replicas": 1}, "max_replicas=1 is less than min_replicas=2"),
        ({}, {"utilisation": 1.5}, "utilisation must be between 0 and 1, not 1.5"),
        ({}, {"backlog_seconds": 0}, "backlog_seconds must be more than 0"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(
    given: dict[str, Any], replicas: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        place(settings(**given), Replicas(**replicas))


@needs_ray
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"port": 9}, "leave port out: Ray's proxies listen, see its http_options"),
        ({"head_seconds": 1.0}, "leave head_seconds out"),
        ({"models": ("a/m", "b/m"), "served_model_names": ("b/m",)}, "two models are called 'b/m'"),
    ],
    ids=str,
)
def test_settings_that_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        deployment(settings(**values))


def built(arguments: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """The settings that `app` makes of arguments."""
    found: list[Any] = []
    monkeypatch.setattr(on_ray, "deployment", lambda *given: found.extend(given))
    app(arguments)
    return found[0], found[1]


@needs_ray
def test_arguments_of_a_command_are_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "model": "owner/name",
        "max_length": "128",
        "access_log": "false",
        "max_queue_seconds": "2.5",
        "on_long": "mean",
        "model_alias": "a=owner/name",
        "num_cpus": "2",
        "max_replicas": "3",
    }
    found, replicas = built({**given}, monkeypatch)
    assert found == ServeSettings(
        models=("owner/name",),
        max_length=128,
        access_log=False,
        max_queue_seconds=2.5,
        on_long="mean",
        model_aliases=(("a", "owner/name"),),
    )
    assert replicas == Replicas(num_cpus=2, max_replicas=3)


@needs_ray
def test_arguments_of_a_file_have_types(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"model": ["a", "b"], "api_key": ["x", "y"], "cache_bytes": 0, "num_gpus": 0.5}
    found, replicas = built({**given, "max_length": None}, monkeypatch)
    assert found == ServeSettings(models=("a", "b"), api_keys=("x", "y"), cache_bytes=0)
    assert replicas == Replicas(num_gpus=0.5)


@needs_ray
@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"modle": "m"}, TypeError, "app has no keyword 'modle': did you mean 'model'"),
        ({"models": ["m"]}, TypeError, "app has no keyword 'models': did you mean 'model'"),
        ({}, ValueError, "arguments of nomicbert.serve.ray:app: .*`models`"),
        ({"model": "m", "max_length": "x"}, ValueError, r"Expected `int.*\$.max_length"),
        ({"model": "m", "on_long": "stop"}, ValueError, r"Invalid enum value 'stop'.*\$.on_long"),
        ({"model": "m", "min_replicas": "0"}, ValueError, "min_replicas must be more than 0"),
        ({"model": ["m", "m"]}, ValueError, "a --model is given twice"),
    ],
    ids=str,
)
def test_arguments_that_are_refused(given: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        app(given)


@needs_ray
def test_what_ray_is_asked_for() -> None:
    fixed = deployment(settings(threads=2, drain_seconds=1, grace_seconds=2))
    found = fixed._bound_deployment
    assert found.name == "nomicbert"
    assert found.num_replicas == 1
    assert found.ray_actor_options == {"num_cpus": 2, "num_gpus": 0}
    assert found.max_ongoing_requests > 1024  # of max_waiting_requests: 429 is the server's
    assert found._deployment_config.graceful_shutdown_timeout_s == 3
    scaled = deployment(settings(), Replicas(max_replicas=4, utilisation=0.5, backlog_seconds=9))
    config = scaled._bound_deployment._deployment_config.autoscaling_config
    assert (config.min_replicas, config.max_replicas) == (1, 4)
    assert (config.upscale_delay_s, config.downscale_delay_s) == (10, 300)
    policy = config.policy.get_policy()(**config.policy.policy_kwargs)
    assert policy(context({"a": 1.0}, {"a": 9.0})) == (4.0, {})


def context(busy: dict[str, float], ahead: dict[str, float], target: int = 1) -> Any:
    metrics = {BUSY: busy, AHEAD: ahead} if busy else {}
    return SimpleNamespace(aggregated_metrics=metrics, target_num_replicas=target)


@pytest.mark.parametrize(
    ("busy", "ahead", "wanted"),
    [
        ({}, {}, 5),  # nothing has been reported: as many as now
        ({"a": 0.7}, {"a": 0.0}, 1),
        ({"a": 1.0}, {"a": 0.0}, 1 / 0.7),
        ({"a": 1.0}, {"a": 30.0}, 2 / 0.7),
        ({"a": 0.3, "b": 0.4}, {"a": 0.0, "b": 0.0}, 1),
        ({"a": 0.0, "b": 0.0}, {"a": 0.0, "b": 0.0}, 0),
    ],
)
def test_how_many_replicas(busy: dict[str, float], ahead: dict[str, float], wanted: float) -> None:
    found, state = Scaling(0.7, 30.0)(context(busy, ahead, target=5))
    assert found == pytest.approx(wanted)
    assert state == {}


def test_how_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    now, running = 100.0, 0.0
    engine: Any = SimpleNamespace(computed_seconds=3.0, running_seconds=lambda: running)
    monkeypatch.setattr("time.monotonic", lambda: now)
    busy = Busy(engine)
    now, engine.computed_seconds = 104.0, 4.0
    assert busy() == 0.25
    now, running = 106.0, 2.0  # a batch that began two seconds ago
    assert busy() == 1.0
    now, running, engine.computed_seconds = 108.0, 0.0, 6.5
    assert busy() == 0.25
    now, running = 110.0, float("inf")  # a thread has died
    assert busy() == 1.0


def test_the_engine_counts_its_time(tmp_path: Path) -> None:
    with in_thread(tiny(tmp_path)) as server:
        engine = server.service.engine
        assert engine is not None
        before = engine.computed_seconds, server.metric("nomicbert_batch_seconds_sum")
        server.call("/v1/embeddings", {"model": MODEL, "input": ["some text"] * 200})
        after = engine.computed_seconds, server.metric("nomicbert_batch_seconds_sum")
        assert after[0] > before[0]
        assert after[0] - before[0] == pytest.approx(after[1] - before[1])


def test_options_have_one_name() -> None:
    fields = {field.name: str(field.type) for field in dataclasses.fields(ServeSettings)}
    several = {name for name, kind in fields.items() if "tuple" in kind}
    assert several == {*PLURALS.values()}
    own = {field.name for field in dataclasses.fields(Replicas)}
    assert not own & ({*fields} | {*PLURALS})


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"needs Ray Serve: pip install .*\[ray\]"):
        deployment(settings())


@needs_ray
def test_an_old_ray_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.__version__", "2.59.1")
    with pytest.raises(ImportError, match=r"needs Ray 2\.60, not 2\.59\.1: pip install"):
        app({"model": "m"})


def test_it_does_not_import_ray(warm_python: WarmPython) -> None:
    code = "import sys, nomicbert.serve.ray; print('ray' in sys.modules)"
    assert warm_python.run(code).stdout == "False\n"


def test_a_replica_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its health, figures and end, without Ray; models that do not load are errors of ours."""
    from nomicbert.errors import NomicBertError
    from nomicbert.serve.cluster import replica as module

    def quiet(*_: object) -> None:
        """Leave the handlers of this process alone."""

    monkeypatch.setattr(module, "set_up", quiet)
    monkeypatch.setattr(module.sys, "setswitchinterval", quiet)
    monkeypatch.setenv("RAYON_NUM_THREADS", os.environ.get("RAYON_NUM_THREADS", "1"))
    monkeypatch.setenv("NOMICBERT_API_KEY", "second third")
    threads = settings(threads=1, devices=("cpu",), max_batch_tokens=64, api_keys=("first",))

    async def live() -> None:
        missing = dataclasses.replace(threads, models=(str(tmp_path / "missing"),))
        with pytest.raises(NomicBertError, match="missing"):
            await module.Replica(missing).__serve_build_asgi_app__()
        there = dataclasses.replace(threads, models=(str(tiny(tmp_path)),))
        replica = module.Replica(there)
        await replica.__serve_build_asgi_app__()
        service = replica._service
        assert service.settings.api_keys == ("first", "second", "third")
        await replica.check_health()
        assert replica.record_autoscaling_stats() == {
            BUSY: pytest.approx(0, abs=1),
            AHEAD: 0.0,
        }
        monkeypatch.setattr(service.engine, "busy_seconds", lambda: 121.0)
        with pytest.raises(RuntimeError, match="a compute thread has ended"):
            await replica.check_health()
        monkeypatch.setattr(service.engine, "busy_seconds", lambda: 0.0)
        service.models[0].self_test[0] += 1
        service._self_test._began = -float("inf")
        with pytest.raises(RuntimeError, match="gives another vector"):
            await replica.check_health()
        replica.__del__()
        assert service.stopping
        assert not any(thread.is_alive() for thread in service.engine._threads)

    asyncio.run(live())
