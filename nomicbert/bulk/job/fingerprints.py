"""The fingerprint of an input: enough to see that it is not the file that a job began with.

    SHA-256(size, first MiB, last MiB)

Where in the flow: a job's manifest holds one for each source. A full hash would cost a pass over
the inputs; this one sees every appended or cut file, and the footer of Parquet. A change in the
middle of a larger file that keeps its size is not seen, but for lines that end elsewhere where
reading goes on.
"""

import hashlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from nomicbert.bulk.inputs.sources import Source
from nomicbert.bulk.place import Place

END = 1 << 20
# Sources that are read at once: an object store answers slowly.
AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Input:
    """A source as it was when the job began.

    Attributes:
        name: as the user gave it.
        size: bytes of the file.
        sha256: see the head of this module.
        format: how its rows are read.
        compression: of the whole file, or None.
    """

    name: str
    size: int
    sha256: str
    format: str
    compression: str | None

    @classmethod
    def of(cls, source: Source) -> "Input":
        """Read the ends of a source.

        Raises: ValueError: it cannot be opened. OSError: reading failed.
        """
        place = source.place
        assert isinstance(place, Place), "streams were refused"
        size = place.size()
        digest = hashlib.sha256(str(size).encode() + place.ends(END)).hexdigest()
        return cls(source.name, size, digest, source.format.value, source.compression)

    @property
    def content(self) -> dict[str, Any]:
        """All but the name: another working directory makes no other job."""
        found = asdict(self)
        del found["name"]
        return found


def fingerprints(sources: Sequence[Source]) -> tuple[Input, ...]:
    """Of all sources, in their order.

    Raises: ValueError, OSError: as in `Input.of`.
    """
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return tuple(pool.map(Input.of, sources))


def refuse_moved_lines(
    sources: Sequence[Source], offsets: Iterable[tuple[int, int | None]]
) -> None:
    """Refuse files of lines in which no line ends where reading is to begin.

    Args:
        sources: of the job.
        offsets: index of a source, and byte where a row begins; None for the others.

    Raises: ValueError: a change that the fingerprint does not show. OSError: reading failed.
    """
    for index, offset in offsets:
        source = sources[index]
        if not offset or offset == source.place.size():  # the last line may have no end
            continue
        with source.place.open() as file:
            file.seek(offset - 1)
            if file.read(1) != b"\n":
                raise ValueError(
                    f"{source.name} has changed: it has no end of a line at byte {offset:,}, where "
                    "the job goes on. Begin anew with restart=True (--restart)"
                )


def changes(old: Sequence[Input], new: Sequence[Input]) -> list[str]:
    """How inputs differ from those of before, in words; of many the first."""
    for index, (before, now) in enumerate(zip(old, new, strict=False)):
        if before.content == now.content:
            continue
        same = (before.size, before.sha256) == (now.size, now.sha256)
        if before.name != now.name and not same:
            other = " of other content" if before.size == now.size else ""
            return [
                f"input {index + 1} was {before.name} ({before.size:,} bytes), now it is "
                f"{now.name} ({now.size:,} bytes{other})"
            ]
        if before.size != now.size:
            return [f"{now.name} has changed: it had {before.size:,} bytes, now {now.size:,}"]
        if before.sha256 != now.sha256:
            return [f"{now.name} has changed: other content of the same size"]
        was, is_now = ("".join([one.format, one.compression or ""]) for one in (before, now))
        return [f"{now.name} was read as {was}, now as {is_now}"]
    if len(old) != len(new):
        longer = old if len(old) > len(new) else new
        other = longer[min(len(old), len(new))].name
        return [f"there were {len(old):,} inputs, now {len(new):,}: {other} is not in both"]
    return []
