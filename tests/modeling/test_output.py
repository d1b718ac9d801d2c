"""Outputs of models as the tools of training use them: dicts that are rebuilt, gathered, walked."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from typing import Any

import pytest
import torch
from accelerate.utils import convert_outputs_to_fp32, recursively_apply, send_to_device
from torch import Tensor
from torch.distributed.utils import _apply_to_tensors
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from nomicbert.modeling.output import EncoderOutput, LogitsOutput, SpanOutput

STATES = (torch.full((1, 2), 3.0), torch.full((1, 2), 4.0))
OUTPUTS: dict[str, Any] = {
    "encoder": EncoderOutput(torch.full((1, 2), 1.0), torch.full((1,), 2.0), STATES),
    "encoder, hidden state only": EncoderOutput(torch.full((1, 2), 1.0)),
    "logits": LogitsOutput(torch.tensor(1.0), torch.full((1, 2), 2.0)),
    "logits without a loss": LogitsOutput(None, torch.full((1, 2), 2.0), STATES),
    "span": SpanOutput(torch.tensor(1.0), torch.full((1, 2), 2.0), torch.full((1, 2), 5.0)),
}
each = pytest.mark.parametrize("label", OUTPUTS)


def flat(output: Any) -> list[Tensor]:
    values = [output] if isinstance(output, Tensor) else list(getattr(output, "values", list)())
    return [t for value in values for t in (value if isinstance(value, tuple) else (value,))]


def agree(found: Any, wanted: Any, factor: float = 1.0) -> None:
    """The same class and names, by every way in, with `factor` times the values."""
    assert type(found) is type(wanted)
    assert isinstance(found, dict)
    names = [f.name for f in dataclasses.fields(wanted) if getattr(wanted, f.name) is not None]
    assert list(found) == list(found.keys()) == [*found] == names == list(wanted)
    assert len(found) == len(names)
    for place, name in enumerate(names):
        assert found[name] is getattr(found, name) is found[place] is found.get(name)
        assert found.to_tuple()[place] is found[name]
    for field in dataclasses.fields(wanted):
        assert (getattr(found, field.name) is None) == (field.name not in names)
        assert (field.name in found) == (field.name in names)
    assert len(flat(found)) == len(flat(wanted)) > 0
    for a, b in zip(flat(found), flat(wanted), strict=True):
        assert torch.equal(a, factor * b)


@each
def test_ways_in(label: str) -> None:
    output = OUTPUTS[label]
    agree(output, output)
    assert output[1:] == output.to_tuple()[1:]
    assert output[-1] is output[list(output)[-1]]
    assert dict(output) == dict(output.items()) == {**output}
    assert output.get("nothing") is None
    for missing in ("nothing", "loss" if "loss" not in output else "past_key_values"):
        with pytest.raises(KeyError, match=missing):
            output[missing]
    with pytest.raises(IndexError):
        output[9]


@each
def test_copies_and_pickles(label: str) -> None:
    output = OUTPUTS[label]
    agree(pickle.loads(pickle.dumps(output)), output)
    agree(copy.copy(output), output)
    deep = copy.deepcopy(output)
    agree(deep, output)
    assert flat(deep)[0] is not flat(output)[0]
    assert flat(copy.copy(output))[0] is flat(output)[0]
    first = dataclasses.fields(output)[0].name
    replaced = dataclasses.replace(output, **{first: torch.tensor(7.0)})
    assert replaced[first].item() == 7
    assert list(replaced)[-1] == list(output)[-1]


@each
def test_what_tools_rebuild(label: str) -> None:
    """accelerate from a dict, DataParallel from pairs, FSDP by its fields."""
    output = OUTPUTS[label]
    agree(recursively_apply(lambda t: 2 * t, output), output, 2)
    agree(send_to_device(output, torch.device("cpu")), output)
    agree(_apply_to_tensors(lambda t: 3 * t, output), output, 3)
    pairs = ((k, v) for k, v in output.items())
    agree(type(output)(pairs), output)
    agree(type(output)({name: output[name] for name in reversed(list(output))}), output)
    narrow = recursively_apply(lambda t: t.to(torch.bfloat16), output)
    wide = convert_outputs_to_fp32(lambda: narrow)()
    agree(wide, output)
    assert {t.dtype for t in flat(wide)} == {torch.float32}
    with pytest.raises(TypeError, match=f"{type(output).__name__} has no field 'logit'"):
        type(output)({"logit": torch.tensor(1.0)})


@each
def test_trees(label: str) -> None:
    output = OUTPUTS[label]
    leaves, spec = tree_flatten(output)
    assert all(a is b for a, b in zip(leaves, flat(output), strict=True))
    agree(tree_unflatten(leaves, spec), output)
    agree(tree_map(lambda t: 2 * t, output), output, 2)
    nested = tree_map(lambda t: 2 * t, {"a": [output]})
    agree(nested["a"][0], output, 2)


@each
@pytest.mark.parametrize("leaf", [None, {"shape": (1, 2)}, iter(())], ids=["None", "dict", "iter"])
def test_trees_of_other_values(leaf: Any, label: str) -> None:
    """Names are kept: a mapping is a value here, not the fields of an output."""
    output = OUTPUTS[label]
    leaves, spec = tree_flatten(output)
    found = tree_unflatten([leaf] * len(leaves), spec)
    assert type(found) is type(output)
    assert list(found) == list(output)
    for name, value in output.items():
        assert found[name] is getattr(found, name)
        assert found[name] == ((leaf,) * len(value) if isinstance(value, tuple) else leaf)
    for field in dataclasses.fields(output):
        assert hasattr(found, field.name)
    back = tree_unflatten(leaves, tree_flatten(found)[1] if leaf is None else spec)
    agree(back, output)
    again = copy.copy(found)
    assert list(again.items()) == list(found.items())


@each
def test_changes_are_refused(label: str) -> None:
    """They would leave the attribute and the key in disagreement."""
    output = copy.copy(OUTPUTS[label])
    name = next(iter(output))
    changes = {
        "item": lambda: output.__setitem__(name, None),
        "deletion": lambda: output.__delitem__(name),
        "pop": lambda: output.pop(name),
        "popitem": output.popitem,
        "clear": output.clear,
        "update": lambda: output.update({name: None}),
        "setdefault": lambda: output.setdefault("more", None),
        "in place": lambda: output.__ior__({name: None}),
    }
    for change in changes.values():
        with pytest.raises(TypeError, match=r"cannot be changed: make another one with dataclass"):
            change()
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(output, name, None)
    agree(output, OUTPUTS[label])
