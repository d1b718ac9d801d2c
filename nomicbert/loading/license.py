"""Read licence and base model from a checkpoint's model card (README.md).

Source: the front matter of model cards, which Hugging Face documents: YAML between two lines of
three dashes. Only its top-level scalars are read, so no YAML library is needed.
"""

import re
from dataclasses import dataclass
from pathlib import Path

# Characters in which the front matter must end.
FRONT = 2**20
# "nc" as in Creative Commons, or "non-commercial" in the name of a custom licence.
NON_COMMERCIAL = re.compile(r"\bnc\b|non-?commercial", re.IGNORECASE)
# In linear time: spaces before a comment are part of the value, and are removed later.
SCALAR = re.compile(r"(license|license_name|license_link|base_model): *([^\s#][^#]*)(#.*)?")
ENTRY = re.compile(r" *- +([^\s#][^#]*)(#.*)?")


@dataclass(frozen=True)
class License:
    """The licence of the weights.

    Attributes:
        name: an identifier such as "apache-2.0" or "cc-by-nc-4.0".
        non_commercial: whether the name says that commercial use is forbidden.
    """

    name: str
    non_commercial: bool


def read_license(folder: Path) -> License | None:
    """The licence that the card of a checkpoint folder states; None also if it cannot be read."""
    found = read_front(folder)
    # with "other", the licence is stated in license_name
    name = found.get("license_name") if found.get("license") in (None, "other") else None
    name = name or found.get("license")
    return License(name, bool(NON_COMMERCIAL.search(name))) if name else None


def read_front(folder: Path) -> dict[str, str]:
    """Keys of a card about licence and base model -> value; {} for no card, or a damaged one.

    Of a list, the first entry counts.
    """
    path = folder / "README.md"
    if not path.is_file():
        return {}
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            first, *lines = file.read(FRONT).splitlines() or [""]
    except OSError:  # no card is needed to load a checkpoint
        return {}
    ends = list(map(str.rstrip, lines))
    if first.strip() != "---" or "---" not in ends:
        return {}
    found = dict[str, str]()
    for line, before in zip(lines[: ends.index("---")], ["", *ends], strict=False):
        key, value = _entry(line, before)
        if key and value:
            found[key] = value
    return found


def _entry(line: str, before: str) -> tuple[str, str]:
    """Key and value of a line, which may be the first entry of a list under the line before."""
    if match := SCALAR.fullmatch(line):
        return match[1], match[2].rstrip(" ").strip("\"'")
    if before == "base_model:" and (match := ENTRY.fullmatch(line)):
        return "base_model", match[1].rstrip(" ").strip("\"'")
    return "", ""
