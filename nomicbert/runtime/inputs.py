"""The inputs of a call: any ordered collection -> checked texts, or pairs of texts.

Where in the flow: the facades call this before a text is tokenised. What is refused here would
otherwise embed something else than it seems, such as the names of a table's columns.
"""

from collections.abc import Iterable, Iterator, KeysView, Mapping, Set
from typing import Any

import numpy as np

from nomicbert.errors import TextError
from nomicbert.text.tokenizer import Pair


def as_iterator(inputs: Any, name: str = "inputs", what: str = "str") -> Iterator[Any]:
    """Iterate over the inputs of a call.

    Args:
        inputs: any ordered collection of `what`.
        name: of the argument, for the message.
        what: "str" or "pairs of str".

    Raises: TypeError: not iterable, without a defined order, or something with other elements than
        one would think, such as a table, which yields the names of its columns. It says what to do.
    """
    if isinstance(inputs, Iterable) and not _misleads(inputs):
        return iter(inputs)
    wanted = f"an ordered collection of {what}"
    if (name, what) == ("inputs", "str"):
        wanted = f"a str or {wanted}"
    remedy = _remedy(inputs, name)
    if what != "str" and (_is_table(inputs) or isinstance(inputs, Mapping)):
        remedy = f". Give pairs of its columns, as in zip({name}['query'], {name}['text'])"
    raise TypeError(f"{name} must be {wanted}, not {type(inputs).__name__}{remedy}")


def as_texts(inputs: Any, sentences: Any = None) -> tuple[list[str], bool]:
    """The checked texts of a call, and whether it was given a single text.

    Args:
        inputs: one text or any number of them, or None.
        sentences: old name of `inputs`.

    Raises: TypeError: neither, both, or not texts. TextError: a text is not valid Unicode.
    """
    if inputs is None and sentences is None:
        raise TypeError("inputs are missing: give one text or any number of them")
    if inputs is not None and sentences is not None:
        raise TypeError("give inputs or sentences (its old name), not both")
    given = sentences if inputs is None else inputs
    lone = isinstance(given, str)
    return list(checked([given] if lone else as_iterator(given))), lone


def checked(inputs: Iterable[Any]) -> Iterator[str]:
    """Yield the inputs unchanged; the error for an invalid one holds its index."""
    for index, text in enumerate(inputs):
        if not isinstance(text, str):
            raise TypeError(
                f"input {index} must be a str, not {type(text).__name__}: {text!r:.80}"
                + _remedy(text)
            )
        check_text(index, text)
        yield text


def check_text(index: int, text: str) -> None:
    """Raise a TextError if a text cannot be encoded as UTF-8."""
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TextError(
            index,
            f"is not valid Unicode: a lone surrogate, {text[error.start]!r}, at character "
            f"{error.start}",
        ) from error


def as_pairs(inputs: Any) -> tuple[list[Pair], bool]:
    """The checked pairs of a call, and whether it was given a single pair.

    A single pair is a tuple, list or array of two texts.

    Raises: TypeError: not pairs of str. TextError: not valid Unicode.
    """
    if isinstance(inputs, str | bytes):
        raise TypeError("inputs must be pairs of str, not one text: give (query, text)")
    lone = is_lone_pair(inputs)
    return list(checked_pairs([inputs] if lone else as_iterator(inputs, what="pairs of str"))), lone


def is_lone_pair(inputs: object) -> bool:
    """Whether these inputs are a single pair: a tuple, list or array of two texts."""
    return isinstance(inputs, tuple | list | np.ndarray) and _is_pair(inputs)


def as_documents(query: Any, documents: Any) -> list[str]:
    """The checked texts of a call of `rank`.

    Raises: TypeError: the query is no str, or the documents are no collection of str.
    """
    if not isinstance(query, str):
        raise TypeError(f"query must be one str, not {type(query).__name__}: {query!r:.80}")
    if isinstance(documents, str):
        raise TypeError("documents must be a collection of str, not one text: give [text]")
    return list(checked(as_iterator(documents, "documents")))


def checked_pairs(inputs: Iterable[Any]) -> Iterator[Pair]:
    """Yield the inputs as pairs; the error for an invalid one holds its index.

    Raises: TypeError: not a pair of str. TextError: not valid Unicode.
    """
    for index, pair in enumerate(inputs):
        if not isinstance(pair, list | tuple | np.ndarray) or not _is_pair(pair):
            raise TypeError(f"input {index} must be a pair of str, not {pair!r:.80}")
        for text in pair:
            check_text(index, text)
        yield str(pair[0]), str(pair[1])


def _misleads(inputs: Any) -> bool:
    """Whether its elements are no inputs, or in no order, although it is iterable."""
    if isinstance(inputs, bytes | bytearray | memoryview | Mapping | Set):
        return True
    scalar = getattr(inputs, "shape", None) == ()
    return scalar or _is_table(inputs) or hasattr(inputs, "readline")


def _is_table(value: Any) -> bool:
    """Whether it is a DataFrame, a Table or a Dataset, of any library."""
    return hasattr(type(value), "columns") or hasattr(type(value), "column_names")


def _is_pair(value: Any) -> bool:
    if getattr(value, "shape", None) == ():  # an array without a length
        return False
    return len(value) == 2 and all(isinstance(text, str) for text in value)


def _remedy(value: Any, name: str | None = None) -> str:
    """What to do about an input that is no text, or, with its name, an argument that has none."""
    if isinstance(value, Mapping):
        way = "as in [row['text'] for row in rows]" if name is None else f"as in {name}['text']"
        return f". Give the texts under one of its keys, {way}"
    if _is_table(value):
        return f". Give one of its columns, as in {name or 'table'}['text']"
    if isinstance(value, KeysView):
        return ". Give list(...) of it"
    if isinstance(value, Set):
        return ". Give sorted(...) of it"
    if isinstance(value, bytes | bytearray | memoryview):
        return ". Decode it: str(..., 'utf-8')"
    if hasattr(value, "readline"):
        return ", whose lines keep their line ends. Give file.read().splitlines()"
    shape = getattr(value, "shape", None)
    if shape == () and not isinstance(value, np.generic):
        return ". Give its .item()"
    if isinstance(value, list | tuple) or shape:
        return ". Give one flat list of texts; pairs are for CrossEncoder"
    if hasattr(value, "as_py"):
        return ". Give the column's .to_pylist()"
    if value is None or str(value) in ("nan", "<NA>", "NaT"):  # missing values of a table
        return ". Leave it out, or give '' in its place"
    return ""
