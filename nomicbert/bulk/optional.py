"""pyarrow, which bulk can do without for lines of text to .npy and JSONL."""

import importlib.util

from nomicbert.errors import to_install


def need_pyarrow(what: str) -> None:
    """Refuse to go on without pyarrow.

    Args:
        what: that needs it, such as "reading docs.jsonl.gz".

    Raises: ImportError: it is not installed.
    """
    if importlib.util.find_spec("pyarrow") is None:
        raise ImportError(f"{what} needs pyarrow: {to_install('parquet')}")
