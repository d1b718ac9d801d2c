"""transformers' encoder followed by the checkpoint's own pooling, as one torch module.

This is how users of transformers would write it, and it is the module exported to other runtimes.
It returns vectors, so no hidden states have to be copied.
"""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nomicbert.benchmark.batching import Batching, by_count, padded, ways
from nomicbert.benchmark.peers import AbsentError, Setting
from nomicbert.benchmark.workloads import Case
from nomicbert.loading.json_settings import read_json
from nomicbert.verify.formula import ACTIVATIONS, read_steps
from nomicbert.verify.references import NotComparableError, Transformers

TORCH_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


class Sentence(nn.Module):
    """Padded token ids -> vectors."""

    def __init__(self, model: nn.Module, folder: Path, dtype: torch.dtype) -> None:
        """Append the pooling and Dense layers of `folder` to a model of transformers.

        Raises: AbsentError: a pooling mode or a module that is not implemented here.
        """
        super().__init__()
        steps = read_steps(folder)
        if steps.modes not in (("mean",), ("cls",)):
            raise AbsentError(f"pooling {'+'.join(steps.modes)!r} is not implemented for peers")
        kinds = [step.kind for step in steps.after]
        self.normalize = kinds[-1:] == ["Normalize"]
        dense = steps.after[: len(kinds) - self.normalize]
        if any(step.kind != "Dense" or step.residual for step in dense):
            raise AbsentError(f"{', '.join(kinds)} after pooling is not implemented for peers")
        self.model, (self.mode,) = model, steps.modes
        self.activations = [step.activation for step in dense]
        self.dense = nn.ModuleList()
        for step in dense:
            weight, bias = step.tensors["linear.weight"], step.tensors.get("linear.bias")
            layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
            layer.weight.data = weight.to(dtype)
            if bias is not None:
                layer.bias.data = bias.to(dtype)
            self.dense.append(layer)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Ids and mask, each (texts, longest) int64 -> (texts, dim) fp32."""
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return self.pool(hidden, attention_mask)

    def pool(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        """The steps after the encoder: (texts, longest, hidden) and a mask -> (texts, dim) fp32."""
        if self.mode == "cls":
            x = hidden[:, 0]
        else:
            weights = attention_mask.unsqueeze(-1).float()
            x = ((hidden.float() * weights).sum(1) / weights.sum(1)).to(hidden.dtype)
        for layer, activation in zip(self.dense, self.activations, strict=True):
            x = ACTIVATIONS[activation](layer(x))
        x = x.float()
        return F.normalize(x) if self.normalize else x


def load_sentence(setting: Setting, dtype: str) -> Sentence:
    """The checkpoint in transformers with sdpa attention, in eval mode, on the setting's device.

    Raises: AbsentError: transformers is missing or does not read the checkpoint correctly.
    """
    key = f"transformers {dtype}"
    if key not in setting.loaded:
        model = known(setting).load(TORCH_DTYPES[dtype], "sdpa")
        sentence = Sentence(model, setting.folder, TORCH_DTYPES[dtype])
        setting.loaded[key] = sentence.to(setting.device).eval()
    loaded: Sentence = setting.loaded[key]
    return loaded


def known(setting: Setting) -> Transformers:
    """The reference `Transformers`, checked to read the checkpoint correctly.

    Raises: AbsentError: it does not, or is not installed.
    """
    if find_spec("transformers") is None:
        raise AbsentError("transformers is not installed")
    found = Transformers(setting.encoder, setting.device)
    if "checked" not in setting.loaded:
        try:
            found.check()
        except NotComparableError as error:
            setting.loaded["checked"] = str(error)
        else:
            setting.loaded["checked"] = ""
    if reason := setting.loaded["checked"]:
        raise AbsentError(reason)
    return found


def pad_id(setting: Setting) -> int:
    """The token id for padding."""
    return int(read_json(setting.encoder / "config.json").get("pad_token_id") or 0)


class PaddedRunner:
    """A peer that takes padded batches of token ids.

    Attributes:
        from_texts: see Runner.
    """

    from_texts = False

    def __init__(self, setting: Setting, count: int | None = None) -> None:
        """`count` fixes the texts per batch."""
        self.pad, self.device, self.count = pad_id(setting), setting.device, count

    def batch(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Ids and mask, each (texts, longest) int64 -> (texts, dim) fp32."""
        raise NotImplementedError

    def ways(self, case: Case) -> list[Batching]:
        """See Runner."""
        if self.count is not None:
            return [by_count(case.lengths, self.count)]
        return ways(case, self.device.type)

    def vectors(self, case: Case, way: Batching) -> np.ndarray:
        """See Runner."""
        found: list[np.ndarray] = []
        for part in way.parts:
            found.append(self.batch(*padded([case.ids[i] for i in part], self.pad)))
        vectors = np.concatenate(found)
        ordered = np.empty_like(vectors)
        ordered[[i for part in way.parts for i in part]] = vectors
        return ordered
