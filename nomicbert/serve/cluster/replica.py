"""One replica: the whole server of one machine without its socket, in a process that Ray starts.

Where in the flow: `ray.deployment` names it to Ray, which calls its methods by their names. It
requests nothing of Ray, so it needs no import of it.
"""

import dataclasses
import logging
import os
import sys

from nomicbert.serve.app import App, make_app
from nomicbert.serve.cluster.busy import Busy
from nomicbert.serve.cluster.scaling import AHEAD, BUSY
from nomicbert.serve.logs import RequestLog, log_line, set_up
from nomicbert.serve.names import Names
from nomicbert.serve.server import SWITCH_SECONDS
from nomicbert.serve.settings import ServeSettings


class Replica:
    """A replica, which Ray creates in a process of its own and calls by these names."""

    def __init__(self, settings: ServeSettings) -> None:
        """Nothing is loaded yet."""
        os.environ.setdefault("RAYON_NUM_THREADS", str(settings.threads))  # of the tokenizer
        sys.setswitchinterval(SWITCH_SECONDS)
        set_up("json", logging.StreamHandler(sys.stderr))
        keys = (*settings.api_keys, *os.environ.get("NOMICBERT_API_KEY", "").split())
        settings = dataclasses.replace(settings, api_keys=keys)
        self._app, self._service = make_app(settings, Names(settings))
        if settings.access_log:
            self._service.request_log = RequestLog("json", sys.stderr.fileno())

    async def __serve_build_asgi_app__(self) -> App:
        """Load the models; Ray sends requests when this has ended.

        Raises: NomicBertError, ValueError, RuntimeError: see `Service.start`.
        """
        await self._service.start()
        assert self._service.engine is not None, "it has started"
        self._engine = self._service.engine
        self._busy = Busy(self._engine)
        for model in self._service.models:
            log_line("ready", model=model.name, loaded=model.runs.description)
        return self._app

    async def check_health(self) -> None:
        """After three failures in a row, Ray replaces the replica.

        Raises: RuntimeError: the reason.
        """
        if not self._service.is_alive():
            raise RuntimeError("a compute thread has ended, or takes longer than stuck_seconds")
        if problem := await self._service.is_ready():
            raise RuntimeError(problem)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """The figures of `scaling`."""
        return {BUSY: self._busy(), AHEAD: self._engine.seconds_ahead()}

    def __del__(self) -> None:
        """Ray has sent no request for a while, and all have their answers: end the threads."""
        if hasattr(self, "_service"):  # not if the settings were refused
            self._service.stopping = True
            self._service.stop()
