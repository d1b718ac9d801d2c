"""What is taken from a row: its text, and the fields that are carried along.

Where in the flow: every reader of rows with fields applies a `Selection`, so that a missing field
or a null means the same in all formats.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from nomicbert.bulk.inputs.rows import OnNull

# What is known of a source's fields where it does not state them: those of so many first rows, or
# bytes of them.
SAMPLE_ROWS, SAMPLE_BYTES = 4_096, 1 << 20
# Number of field names that an error lists.
LISTED = 10
KINDS = {
    dict: "an object",
    list: "an array",
    str: "a string",
    bool: "true or false",
    int: "a number",
    float: "a number",
    type(None): "null",
}


@dataclass(frozen=True, slots=True)
class Selection:
    """Which fields of a row are used.

    Attributes:
        field: name of the field that holds the text.
        columns: names of the carried fields; None for all.
        on_null: what a null text means.
    """

    field: str = "text"
    columns: tuple[str, ...] | None = None
    on_null: OnNull = "error"

    def text(self, fields: dict[str, Any]) -> str | None:
        """The text of a row; None if the row is to be skipped.

        Raises: ValueError: there is no field, or it holds no text.
        """
        try:
            text = fields[self.field]
        except KeyError:
            raise ValueError(
                f"there is no field {self.field!r} among {listed(fields)}: pass the name of the "
                "text's field with --field"
            ) from None
        return text if isinstance(text, str) else self.other(text)

    def other(self, value: Any) -> str | None:
        """The text for a value that is no string, as `text` returns it.

        Raises: ValueError: the policy has none.
        """
        if value is None and self.on_null != "error":
            return "" if self.on_null == "empty" else None
        advice = " (--on-null empty or skip allows it)" if value is None else ""
        raise ValueError(f"the field {self.field!r} must be a string, not {kind_of(value)}{advice}")

    def carried(self, fields: dict[str, Any]) -> dict[str, Any]:
        """The fields that are carried along."""
        if self.columns is None:
            return fields
        return {name: fields[name] for name in self.columns if name in fields}


def kind_of(value: Any) -> str:
    """What JSON calls a value."""
    return KINDS[type(value)]


def check_columns(names: Sequence[str], source: str, selection: Selection) -> None:
    """Check the columns of a source.

    Raises: ValueError: two have one name, or none is that of the text.
    """
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{source} has two columns {twice!r}: rename one")
    if selection.field not in names:
        raise ValueError(
            f"{source} has no column {selection.field!r} among {listed(names)}: pass the name of "
            "the text's column with --field"
        )


def not_utf8(content: bytes, error: UnicodeDecodeError) -> str:
    """What to say of bytes that cannot be decoded."""
    return (
        f"byte {error.start + 1} (0x{content[error.start]:02x}) is not UTF-8: convert the input "
        "first"
    )


def listed(names: Iterable[str]) -> str:
    """The first names of many, for an error."""
    known = list(islice(names, LISTED + 1))
    return (", ".join(map(repr, known[:LISTED])) + ", ..." * (len(known) > LISTED)) or "none"
