"""The manifest of a job: what decides its numbers, written once before the first part.

    run id = SHA-256 of (version, want, contents of the inputs, units), 32 hex characters

Where in the flow: `plan` compares it with what is wanted now, and refuses another job on the same
folder. Each part's footer names the run id, so that a part of another job is seen.
"""

import base64
import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from nomicbert.bulk.inputs.rows import Span
from nomicbert.bulk.job.fingerprints import Input
from nomicbert.bulk.job.folder import Folder
from nomicbert.bulk.job.names import MANIFEST

VERSION = 1
RUN_ID = 32


class OtherJob(ValueError):
    """The folder holds a job with other inputs, another model or other options.

    Attributes:
        found: how they differ, in words.
    """

    def __init__(self, message: str, found: list[str]) -> None:
        super().__init__(message)
        self.found = found


@dataclass(frozen=True)
class Manifest:
    """What a job is.

    Attributes:
        want: the options and what decides the vectors, as JSON values by name.
        description: of the model, for people.
        inputs: the sources in order.
        tasks: the spans of each task.
        carried: pa.Schema of the carried columns, under the names of the inputs.
        created: date and time, for people.
    """

    want: dict[str, Any]
    description: dict[str, Any]
    inputs: tuple[Input, ...]
    tasks: tuple[tuple[Span, ...], ...]
    carried: Any
    created: str

    @property
    def run(self) -> str:
        """The run id."""
        known = [VERSION, self.want, [one.content for one in self.inputs], self.tasks]
        return hashlib.sha256(_line(known).encode()).hexdigest()[:RUN_ID]

    def write(self, folder: Folder) -> None:
        """Write it, whole and durable.

        Raises: OSError, ValueError: it cannot be written.
        """
        content = {
            "version": VERSION,
            "run": self.run,
            "created": self.created,
            "want": self.want,
            "description": self.description,
            "columns": {field.name: str(field.type) for field in self.carried},
            "schema": base64.b64encode(self.carried.serialize().to_pybytes()).decode(),
            "inputs": [asdict(one) for one in self.inputs],
            "tasks": self.tasks,
        }
        with folder.write(MANIFEST) as file:
            lines = ",\n".join(f"{_line(name)}: {_lines(value)}" for name, value in content.items())
            file.write(f"{{\n{lines}\n}}\n".encode())


def read_manifest(folder: Folder) -> Manifest:
    """Read the manifest of a folder that has one.

    Raises: ValueError: it is damaged, or of a newer version. OSError: reading failed.
    """
    where = f"{folder.name}: {MANIFEST}"
    with folder.open(MANIFEST) as file:
        raw = file.read()
    try:
        content = json.loads(raw)
        if (version := content["version"]) != VERSION:
            raise ValueError(
                f"{where} has version {version}, and this nomicbert reads {VERSION}: go on with "
                "the version that began it, or choose another folder"
            )
        found = _manifest(content)
    except (KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{where} is damaged ({error!r}): {ADVICE}") from error
    if found.run != content["run"]:
        raise ValueError(f"{where} was changed: its run id is that of other content: {ADVICE}")
    return found


ADVICE = "restore it, or choose another folder"


def _manifest(content: dict[str, Any]) -> Manifest:
    import pyarrow as pa

    try:
        schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(content["schema"])))
    except (pa.ArrowInvalid, OSError, ValueError) as error:
        raise KeyError(f"schema: {error}") from error
    return Manifest(
        want=content["want"],
        description=content["description"],
        inputs=tuple(Input(**one) for one in content["inputs"]),
        tasks=tuple(tuple(Span(*span) for span in task) for task in content["tasks"]),
        carried=schema,
        created=content["created"],
    )


def differences(old: dict[str, Any], new: dict[str, Any], names: Iterable[str] = ()) -> list[str]:
    """How settings differ from those of before, in words.

    Args:
        old: `want` of a manifest.
        new: the same as wanted now.
        names: of the settings to compare; all if there are none.
    """
    found = []
    for name in names or sorted(old.keys() | new):
        was, now = (_line(want[name]) if name in want else "not set" for want in (old, new))
        if was != now:
            found.append(f"{name} was {was}, now it is {now}")
    return found


def refuse(folder: Folder, found: list[str]) -> None:
    """Raise an OtherJob if anything differs."""
    if found:
        raise OtherJob(
            f"{folder.name} holds another job: {'; '.join(found)}. Give the same to go on, choose "
            "another folder, or pass restart=True (--restart), which deletes its parts first",
            found,
        )


def _lines(value: Any) -> str:
    """JSON with a line for each entry of a list, which may be long."""
    if not isinstance(value, list | tuple):
        return _line(value)
    return "[\n " + ",\n ".join(map(_line, value)) + "\n]"


def _line(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)
