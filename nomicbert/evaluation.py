"""Deprecated alias of `nomicbert.integrations.mteb`."""

from typing import TYPE_CHECKING, Any

from nomicbert.user_warnings import warn

if TYPE_CHECKING:
    from nomicbert.integrations.mteb import MTEBEncoder as MTEBEncoder


def __getattr__(name: str) -> Any:
    from nomicbert.integrations import mteb

    if name.startswith("_") or not hasattr(mteb, name):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warn(
        f"nomicbert.evaluation is now nomicbert.integrations.mteb: import {name} from there",
        DeprecationWarning,
    )
    return getattr(mteb, name)
