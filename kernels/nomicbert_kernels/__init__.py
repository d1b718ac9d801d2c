"""The ops of nomicbert: one reference implementation each, and faster versions of it.

>>> import torch
>>> from nomicbert_kernels import select_ops
>>> ops = select_ops("cpu", torch.float32)
>>> weight = ops.prepare(torch.eye(4), None, "linear")
>>> ops.linear(torch.ones(2, 4), weight).sum().item()
8.0
"""

from nomicbert_kernels.backend import Backend, Ops, choose_ops, select_ops
from nomicbert_kernels.dtypes import compute_dtype, fastest_dtype, has_bf16_instructions
from nomicbert_kernels.launch import BackendError
from nomicbert_kernels.tensors import (
    Activation,
    EmbeddingTables,
    LayerWeights,
    Norm,
    Plan,
    PoolMode,
    Rope,
    Run,
    Weight,
    WeightKind,
    values,
)

__all__ = [
    "Activation",
    "Backend",
    "BackendError",
    "EmbeddingTables",
    "LayerWeights",
    "Norm",
    "Ops",
    "Plan",
    "PoolMode",
    "Rope",
    "Run",
    "Weight",
    "WeightKind",
    "choose_ops",
    "compute_dtype",
    "fastest_dtype",
    "has_bf16_instructions",
    "select_ops",
    "values",
]
