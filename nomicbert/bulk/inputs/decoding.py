"""JSON values as Python objects, without numbers that Python would change or refuse.

Where in the flow: `lines` decodes objects here, `json_rows` the values of a file.
Source: RFC 8259, which leaves the range of numbers to the reader.
"""

import json
import math
from typing import Any

# The fewest digits that Python refuses in an integer, less one; a process may set more.
MOST_DIGITS = 4_300


def _finite(text: str) -> float:
    """A number that is no integer.

    Raises: ValueError: it is finite in the file, but beyond float64.
    """
    number = float(text)
    if math.isinf(number):
        shown = text if len(text) < 40 else f"{text[:20]}..."
        raise _BeyondFloat(f"the number {shown} is beyond float64")
    return number


class _BeyondFloat(ValueError):
    """A number that would become infinite."""


DECODER = json.JSONDecoder(parse_float=_finite)
# Finds the end of a value whatever its numbers are.
LENIENT = json.JSONDecoder(parse_float=str, parse_int=str)


def number_problem(error: ValueError) -> str:
    """What to say of a value that `DECODER` refuses for a number, with no JSONDecodeError."""
    if isinstance(error, _BeyondFloat):
        return str(error)
    return f"an integer has more than {MOST_DIGITS:,} digits: write it as a string"


def decode(text: str) -> Any:
    """The only value of a text.

    Raises: ValueError: it is not JSON, nested too deeply, or holds a number out of range.
    """
    try:
        return DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at column {error.colno}") from error
    except ValueError as error:
        raise ValueError(number_problem(error)) from error
    except RecursionError as error:
        raise ValueError("the object is nested too deeply") from error
