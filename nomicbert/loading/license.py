"""Read licence and base model from a checkpoint's model card (README.md).

Source: the front matter of model cards, which Hugging Face documents: YAML between two lines of
three dashes. Only top-level scalars and lists of them are read, so no YAML library is needed.
"""

import re
from dataclasses import dataclass
from pathlib import Path

# Characters in which the front matter must end.
FRONT = 2**20
# "nc" as in Creative Commons, or "non-commercial" in the name of a custom licence.
NON_COMMERCIAL = re.compile(r"\bnc\b|non-?commercial", re.IGNORECASE)
KEY = re.compile(r"(license|license_name|license_link|base_model):(.*)")
ENTRY = re.compile(r" *-\s(.*)")
# Quoted values; the quote itself is doubled or escaped in them.
SINGLE = re.compile(r"'((?:[^']|'')*)'")
DOUBLE = re.compile(r'"((?:[^"\\]|\\.)*)"')
COMMENT = re.compile(r"\s#")
NOTHING = {"", "~", "null", "Null", "NULL"}


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
    name = ", ".join(found.get("license", []))
    # with "other", the licence is stated in license_name
    if name in ("", "other"):
        name = ", ".join(found.get("license_name", [])) or name
    return License(name, bool(NON_COMMERCIAL.search(name))) if name else None


def read_front(folder: Path) -> dict[str, list[str]]:
    """Keys of a card about licence and base model -> values; {} for no card, or a damaged one.

    A scalar is a list of one; a key without a value, or with null, is left out.
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
    found, key = dict[str, list[str]](), ""
    for line in lines[: ends.index("---")]:
        if match := KEY.fullmatch(line):
            key, text = match[1], match[2]
            found[key] = []
        elif key and (match := ENTRY.fullmatch(line)):
            text = match[1]
        elif not line.strip():
            continue
        else:
            key = ""
            continue
        if value := _value(text.strip()):
            found[key].append(value)
    return {key: values for key, values in found.items() if values}


def _value(text: str) -> str:
    """A scalar without quotes and comment; "" for null, or for a quote that is not closed."""
    if text.startswith("'"):
        match = SINGLE.match(text)
        return match[1].replace("''", "'") if match else ""
    if text.startswith('"'):
        match = DOUBLE.match(text)
        return re.sub(r"\\(.)", r"\1", match[1]) if match else ""
    plain = "" if text.startswith("#") else COMMENT.split(text, maxsplit=1)[0].rstrip()
    return "" if plain in NOTHING else plain
