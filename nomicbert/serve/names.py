"""The names that requests may give a model.

Where in the flow: a dialect asks for the model of a request. The id of a repository, its last part,
names that clients know it by, and those of the command's options are names; the path of a folder
is one too, but no client is told.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from nomicbert.serve.http.problems import Problem, Reason
from nomicbert.serve.settings import ServeSettings

# A name such as nomic-embed-text-v1.5, which ollama writes nomic-embed-text:v1.5.
NOMIC = re.compile(r"(nomic-embed-text)-(v[\d.]+)")


class Names:
    """Name of a model in a request -> its index.

    Attributes:
        by_name: every name that is listed, in this order.
    """

    def __init__(self, settings: ServeSettings) -> None:
        """Collect the names of all models.

        Raises: ValueError: an alias of a model that is not served, or a name of two models.
        """
        self.by_name: dict[str, int] = {}
        self.primary = [primary_name(model) for model in settings.models]
        self._any = settings.any_model_name
        # names as they were given; paths of folders among them are shown to nobody
        self._given = {model: index for index, model in enumerate(settings.models)}
        for index, primary in enumerate(self.primary):
            more = settings.served_model_names if index == 0 else ()
            for name in (*more, primary):
                self._add(name, index)
        implied: dict[str, int] = {}
        for index, primary in enumerate(self.primary):
            for name in well_known_names(primary):
                implied.setdefault(name, index)
        targets = {**self.by_name, **implied, **self._given, **self.by_name}
        for alias, name in settings.model_aliases:
            if name not in targets:
                known = ", ".join(map(repr, targets))
                raise ValueError(f"--model-alias {alias}={name}: no model {name!r}; known: {known}")
            self._add(alias, targets[name])
        self.by_name = {**self.by_name, **implied, **self.by_name}  # stated names come first

    def find(self, name: str | None) -> int | None:
        """The index of a model; None without a name, or for any name with --any-model-name.

        Raises: Problem: no such model.
        """
        if name is None:
            return None
        found = self.by_name.get(name, self._given.get(name))
        if found is not None:
            return found
        if self._any:
            return None
        known = ", ".join(map(repr, self.by_name))
        raise Problem(
            Reason.UNKNOWN_MODEL, f"no model {name!r:.200} here: this server has {known}", "model"
        )

    def knows(self, name: str) -> bool:
        """Whether it is a name of a model."""
        return name in self.by_name or name in self._given

    def _add(self, name: str, index: int) -> None:
        if self.by_name.setdefault(name, index) != index:
            raise ValueError(
                f"two models are called {name!r}: rename a folder, or choose another "
                "--served-model-name or --model-alias"
            )


def primary_name(model: str) -> str:
    """The id of a repository; of a folder its last part, since its path is nobody's business."""
    path = Path(model).expanduser()
    return path.resolve().name if path.is_dir() else model


def well_known_names(name: str) -> Iterable[str]:
    """Further names that clients know a checkpoint by: without the owner, and ollama's."""
    short = name.rsplit("/", 1)[-1]
    yield short
    if match := NOMIC.fullmatch(short):
        family, version = match.groups()
        yield from (family, f"{family}:latest", f"{family}:{version}")
