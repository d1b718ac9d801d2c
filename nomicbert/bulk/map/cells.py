"""Values of any Arrow column -> short strings for the page.

Where in the flow: `page` shows them for a point, `colours` names groups with them. Importing this
module needs pyarrow.
"""

import json
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from nomicbert.bulk.cells import without_form

MOST_CELL = 80


def as_strings(column: Any, *, most: int = MOST_CELL, null: str = "") -> Any:
    """A column as a pa.StringArray of the same length, without nulls.

    Args:
        column: pa.ChunkedArray; lists and structs become JSON, bytes become hexadecimal digits.
        most: characters; longer ones are cut and end in an ellipsis.
        null: what a null becomes.
    """
    whole = column.combine_chunks()
    if isinstance(whole, pa.ChunkedArray):  # of older pyarrow, or for no chunks
        whole = pa.concat_arrays(whole.chunks) if whole.num_chunks else pa.array([], whole.type)
    if pa.types.is_dictionary(whole.type):
        whole = whole.dictionary_decode()
    kind = whole.type
    is_bytes = without_form([pa.field("", kind)]) is not None and not pa.types.is_duration(kind)
    if is_bytes or pa.types.is_nested(kind):
        values = whole.to_pylist()
        texts = [None if one is None else _json(one) for one in values]
        whole = pa.array(texts, pa.string())
    strings = pc.fill_null(pc.cast(whole, pa.string()), null)
    cut = pc.binary_join_element_wise(pc.utf8_slice_codeunits(strings, 0, most - 1), "…", "")
    return pc.if_else(pc.greater(pc.utf8_length(strings), most), cut, strings)


def _json(value: object) -> str:
    if isinstance(value, bytes):
        return value.hex()
    return json.dumps(value, ensure_ascii=False, default=_plain)


def _plain(value: object) -> str:
    """What JSON does not have."""
    return value.hex() if isinstance(value, bytes) else str(value)
