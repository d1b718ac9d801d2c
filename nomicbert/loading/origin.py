"""Where a model was loaded from, for the card of what is saved of it.

Where in the flow: `pretrained.load` notes it on the model.
Source: the folders of huggingface_hub's cache, models--ORGANISATION--NAME/snapshots/COMMIT.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nomicbert.loading.license import read_front

SNAPSHOTS, PREFIX = "snapshots", "models--"
LICENSE_KEYS = ("license", "license_name", "license_link")
# A value on one line, and the id of a repository; not YAML's forms of several lines, nor a path.
PLAIN = re.compile(r"\w.*")
REPO_ID = re.compile(r"\w[\w.-]*(/[\w.-]+)?")


@dataclass(frozen=True)
class Origin:
    """The checkpoint that a model was loaded from; unknown by default.

    Attributes:
        repo_id: of its repository, or "".
        commit: of the repository, or "".
        base_models: that the card of a local folder names.
        license: license, license_name and license_link of its card, those that it states; of a
            list of several, none.
        folder: its absolute path, which decides nothing.
    """

    repo_id: str = ""
    commit: str = ""
    base_models: tuple[str, ...] = ()
    license: dict[str, str] = field(default_factory=dict)
    folder: str = field(default="", compare=False)

    @property
    def name(self) -> str:
        """What loads it again: the repository, else the folder; "" if unknown."""
        return self.repo_id or self.folder

    @classmethod
    def of(cls, folder: Path) -> "Origin":
        """Of a checkpoint's folder, which may be one of the cache, or below one."""
        path = str(folder.absolute())
        for place in (folder, *folder.parents):
            name = place.parent.parent.name
            if place.parent.name == SNAPSHOTS and name.startswith(PREFIX):
                repo_id = name.removeprefix(PREFIX).replace("--", "/")
                stated = _license(read_front(folder)) or _license(read_front(place))
                return cls(repo_id, place.name, license=stated, folder=path)
        front = read_front(folder)
        bases = tuple(base for base in front.get("base_model", []) if REPO_ID.fullmatch(base))
        return cls(base_models=bases, license=_license(front), folder=path)


def _license(front: Mapping[str, list[str]]) -> dict[str, str]:
    stated = {key: front[key][0] for key in LICENSE_KEYS if len(front.get(key, [])) == 1}
    return {key: value for key, value in stated.items() if PLAIN.fullmatch(value)}
