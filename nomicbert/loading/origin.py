"""Where a model was loaded from, for the card of what is saved of it.

Where in the flow: `pretrained.load` notes it on the model.
Source: the folders of huggingface_hub's cache, models--ORGANISATION--NAME/snapshots/COMMIT.
"""

import re
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
        base_model: that the card of a local folder names, or "".
        license: license, license_name and license_link of its card, those that it states.
    """

    repo_id: str = ""
    commit: str = ""
    base_model: str = ""
    license: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path) -> "Origin":
        """Of a checkpoint's folder, which may be one of the cache."""
        front = read_front(folder)
        stated = {key: front[key] for key in LICENSE_KEYS if PLAIN.fullmatch(front.get(key, ""))}
        *_, name, place, commit = ("", "", "", *folder.parts)
        if place == SNAPSHOTS and name.startswith(PREFIX):
            repo_id = name.removeprefix(PREFIX).replace("--", "/")
            return cls(repo_id, commit, license=stated)
        base = front.get("base_model", "")
        return cls(base_model=base if REPO_ID.fullmatch(base) else "", license=stated)
