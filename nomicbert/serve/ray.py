"""The server on a cluster: the app of one machine as a deployment of Ray Serve.

Ray's proxies listen, spread requests over replicas, replace those that die, and change their number
by `cluster/scaling.py`. A replica is the whole server of one machine without its socket: protocols,
limits and vectors are the same.

    serve run nomicbert.serve.ray:app model=nomic-ai/nomic-embed-text-v1.5

Where in the flow: in place of `server`. Ray is imported when a function here is called.
"""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nomicbert.arguments import refuse_unknown
from nomicbert.errors import to_install
from nomicbert.serve.cluster.resources import Replicas, place, warn_of_too_little
from nomicbert.serve.settings import PLURALS, ServeSettings

if TYPE_CHECKING:
    from ray.serve import Application

__all__ = ["Replicas", "ServeSettings", "app", "deployment"]

# Ray Serve can build an application in a replica, after its constructor, from this version on.
OLDEST_RAY = (2, 60)
SCALING = "nomicbert.serve.cluster.scaling:Scaling"
NAME = "nomicbert"
# Settings of the socket, which is Ray's here.
OF_THE_SOCKET = (
    "host",
    "port",
    "uds",
    "tls_cert",
    "tls_key",
    "head_seconds",
    "body_seconds",
    "keep_alive_seconds",
)
# Requests beyond those that may wait: probes, and those that the server refuses with 429.
MORE_REQUESTS = 256


def deployment(settings: ServeSettings, replicas: Replicas | None = None) -> "Application":
    """The server as an application for `serve.run`.

    Args:
        settings: of each replica. A local folder is looked for on every machine. Keys can stay out
            of Ray's configuration: each replica also accepts those of NOMICBERT_API_KEY.
        replicas: default: one, with one CPU.

    Raises: ValueError: settings of the socket, which is Ray's, several devices, or resources that
        do not fit them. ImportError: the extra `ray` is missing, or Ray is too old.
    """
    serve = _need_serve()
    # with libraries that the check above has found
    from nomicbert.serve.cluster.replica import Replica
    from nomicbert.serve.names import Names

    replicas = replicas or Replicas()
    for field in dataclasses.fields(settings):
        if field.name in OF_THE_SOCKET and getattr(settings, field.name) != field.default:
            raise ValueError(f"leave {field.name} out: Ray's proxies listen, see its http_options")
    settings, cpus, gpus = place(settings, replicas)
    Names(settings)  # what contradicts itself is refused here, not by every replica
    warn_of_too_little(replicas.min_replicas, cpus, gpus)
    options: dict[str, Any] = {
        "name": NAME,
        "ray_actor_options": {"num_cpus": cpus, "num_gpus": gpus},
        "max_ongoing_requests": settings.max_waiting_requests + MORE_REQUESTS,
        "graceful_shutdown_timeout_s": settings.drain_seconds + settings.grace_seconds,
    }
    if replicas.most == replicas.min_replicas:
        options["num_replicas"] = replicas.most
    else:
        kwargs = {key: getattr(replicas, key) for key in ("utilisation", "backlog_seconds")}
        options["autoscaling_config"] = {
            "min_replicas": replicas.min_replicas,
            "max_replicas": replicas.most,
            "upscale_delay_s": replicas.upscale_delay_s,
            "downscale_delay_s": replicas.downscale_delay_s,
            "look_back_period_s": replicas.look_back_period_s,
            "policy": {"policy_function": SCALING, "policy_kwargs": kwargs},
        }
    application: Application = serve.deployment(serve.ingress()(Replica), **options).bind(settings)
    return application


def app(args: Mapping[str, object]) -> "Application":
    """The same, of the arguments of `serve run nomicbert.serve.ray:app` or of Serve's YAML file.

    Args:
        args: attributes of `Replicas`, and options of `nomicbert serve`, with underscores. An
            option that may be repeated takes one value or a list. Texts are read as numbers.

    Raises: TypeError: an unknown name. ValueError: a value of another type; as `deployment`.
    """
    _need_serve()
    import msgspec

    own = {field.name for field in dataclasses.fields(Replicas)}
    known = {field.name for field in dataclasses.fields(ServeSettings)} - {*PLURALS.values()}
    refuse_unknown(sorted({*args} - known - own - {*PLURALS}), app, more=known | own | {*PLURALS})
    given: dict[str, object] = {}
    for name, value in args.items():
        if name in PLURALS:
            items = [value] if isinstance(value, str) else value
            if name == "model_alias" and isinstance(items, list):
                items = [str(item).partition("=")[::2] for item in items]
            given[PLURALS[name]] = items
        else:
            given[name] = value
    try:
        replicas = msgspec.convert(
            {name: given.pop(name) for name in own & {*given}}, Replicas, strict=False
        )
        settings = msgspec.convert(given, ServeSettings, strict=False)
    except msgspec.ValidationError as error:
        raise ValueError(f"arguments of nomicbert.serve.ray:app: {error}") from error
    return deployment(settings, replicas)


def _need_serve() -> Any:
    """The module ray.serve."""
    advice = to_install("ray")
    try:
        import msgspec  # noqa: F401
        import orjson  # noqa: F401
        import prometheus_client  # noqa: F401
        import pybase64  # noqa: F401
        import ray
        from ray import serve
    except ImportError as error:
        raise ImportError(f"the server on a cluster needs Ray Serve: {advice}") from error
    if tuple(map(int, ray.__version__.split(".")[:2])) < OLDEST_RAY:
        oldest = ".".join(map(str, OLDEST_RAY))
        raise ImportError(f"the server needs Ray {oldest}, not {ray.__version__}: {advice}")
    return serve
