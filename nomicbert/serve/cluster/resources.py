"""How many replicas there are on Ray, what each has, and whether the cluster has it.

Where in the flow: `ray.deployment` calls it, before anything is on the cluster.
"""

import dataclasses
import os
from dataclasses import dataclass

from nomicbert.serve.settings import ServeSettings
from nomicbert.user_warnings import warn


@dataclass(frozen=True, kw_only=True)
class Replicas:
    """How many replicas there are, and what each has.

    Attributes:
        num_cpus: of a replica; default: the settings' `threads`, or 1. It computes with as many
            threads, unless `threads` says fewer.
        num_gpus: of a replica, on which it then computes; 0.5 puts two on one GPU. Default: 1 if
            the settings' device is "cuda", else 0.
        min_replicas: at any time.
        max_replicas: under load; default: `min_replicas`, so that their number is fixed.
        utilisation: share of the time that replicas should compute, 0 to 1.
        backlog_seconds: time within which what waits should be done.
        upscale_delay_s, downscale_delay_s: how long more, or fewer, replicas must have been needed.
        look_back_period_s: over which the work of replicas is averaged.
    """

    num_cpus: float | None = None
    num_gpus: float | None = None
    min_replicas: int = 1
    max_replicas: int | None = None
    utilisation: float = 0.7
    backlog_seconds: float = 30.0
    upscale_delay_s: float = 10.0
    downscale_delay_s: float = 300.0
    look_back_period_s: float = 30.0

    def __post_init__(self) -> None:
        """Refuse values that cannot work.

        Raises: ValueError: it names the value.
        """
        for name in ("num_cpus", "num_gpus", "upscale_delay_s", "downscale_delay_s"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"{name} must not be negative, but is {value}")
        for name in ("min_replicas", "backlog_seconds", "look_back_period_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be more than 0, not {getattr(self, name)}")
        if not 0 < self.utilisation <= 1:
            raise ValueError(f"utilisation must be between 0 and 1, not {self.utilisation}")
        if self.most < self.min_replicas:
            raise ValueError(
                f"max_replicas={self.max_replicas} is less than min_replicas={self.min_replicas}"
            )

    @property
    def most(self) -> int:
        """How many there may be."""
        return self.min_replicas if self.max_replicas is None else self.max_replicas


def place(settings: ServeSettings, replicas: Replicas) -> tuple[ServeSettings, float, float]:
    """The settings of a replica on its machine, and its CPUs and GPUs.

    Raises: ValueError: devices, threads and resources that do not fit.
    """
    if len(settings.devices) > 1:
        raise ValueError(
            "give one device: a replica computes on one. More replicas use more (max_replicas)"
        )
    (device,) = settings.devices
    kind, _, index = device.partition(":")
    if index:
        raise ValueError(f"give device {kind!r}, not {device!r}: Ray decides which one it is")
    gpus = replicas.num_gpus
    if gpus is None:
        gpus = 1.0 if kind == "cuda" else 0.0
    if kind == "auto":  # not what is there: Ray may have given it to others
        device = "cuda" if gpus else "cpu"
    elif (kind == "cuda") != (gpus > 0):
        raise ValueError(f"device {device!r} does not fit num_gpus={gpus:g}")
    cpus = replicas.num_cpus
    if cpus is None:
        cpus = float(settings.threads or 1)
    threads = settings.threads or max(1, int(cpus))
    if threads > max(1.0, cpus):
        raise ValueError(f"threads={threads} need as many CPUs, not num_cpus={cpus:g}")
    models = tuple(
        os.path.abspath(model) if os.path.isdir(model) else model for model in settings.models
    )  # replicas have another current folder
    placed = dataclasses.replace(settings, models=models, devices=(device,), threads=threads)
    return placed, cpus, gpus


def warn_of_too_little(wanted: int, cpus: float, gpus: float) -> None:
    """Warn if the cluster that is connected has no room: Ray would wait without an end."""
    import ray

    if not ray.is_initialized():
        return
    needs = [(name, need) for name, need in (("CPU", cpus), ("GPU", gpus)) if need]
    room = 0
    for node in ray.nodes():
        if node["Alive"]:
            have = node["Resources"]
            room += min((int(have.get(name, 0.0) / need) for name, need in needs), default=wanted)
    if room < wanted:
        warn(
            f"this cluster has room for {room} of {wanted} replicas with {cpus:g} CPUs and "
            f"{gpus:g} GPUs each: unless it grows, Ray will wait for ever",
            UserWarning,
        )
