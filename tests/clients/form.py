"""The keys and types of an answer, for comparison. The standard library only, as in `call.py`."""

from __future__ import annotations

import json


def form(value: object) -> object:
    """The same structure with types in place of values; of a list, the different forms in it."""
    if isinstance(value, dict):
        return {key: form(each) for key, each in value.items()}
    if isinstance(value, list):
        forms = {json.dumps(form(each), sort_keys=True) for each in value}
        return [json.loads(each) for each in sorted(forms)]
    return type(value).__name__
