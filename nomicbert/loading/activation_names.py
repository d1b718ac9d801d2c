"""The activations of BERT checkpoints: transformers' names -> one name per function.

The formulas behind the names of one function differ in roundings only.
Source: ACT2FN of transformers 5.
"""

from typing import Final

from nomicbert.config import HiddenAct

BERT_ACTS: Final[dict[str, HiddenAct]] = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_pytorch_tanh",
    "gelu_fast": "gelu_pytorch_tanh",
    "gelu_accurate": "gelu_pytorch_tanh",
    "gelu_python_tanh": "gelu_pytorch_tanh",
    "gelu_pytorch_tanh": "gelu_pytorch_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
