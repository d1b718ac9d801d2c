"""Refusal of tracers and transforms that would record, or cannot know, the lengths of texts.

Texts are packed by their lengths, which are read from the mask on the host. A trace would hold the
lengths of its example as constants, and be silently wrong for any other batch.
"""

import torch
from torch import Tensor, fx

from nomicbert.errors import BackendError

PROGRAM = "nomicbert.export.program(model) for texts of one length"
INSTEAD = (
    f"compile NomicBert.core with torch.compile, or export by {PROGRAM}, or the checkpoint by "
    "nomicbert.export.onnx for any texts"
)


def refuse_jit() -> None:
    """Refuse torch.jit.trace, and torch.onnx.export without dynamo, which uses it.

    Raises: BackendError.
    """
    if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        raise BackendError(
            f"torch.jit.trace would record the lengths of its example as constants: {INSTEAD}"
        )


def refuse_tracing(*inputs: Tensor | None) -> None:
    """Refuse what would record the lengths of one batch.

    Args:
        *inputs: arguments of the call.

    Raises: BackendError: it names the tracer (torch.jit.trace, also within torch.onnx.export;
        torch.fx; make_fx; vmap over the inputs) and what to use instead.
    """
    refuse_jit()
    if any(isinstance(x, fx.Proxy) for x in inputs):
        raise BackendError(f"torch.fx cannot trace lengths that are read from a mask: {INSTEAD}")
    given = [x for x in inputs if x is not None]
    if any(map(torch._C._functorch.is_batchedtensor, given)):
        raise BackendError("vmap cannot run over the inputs: pass a batch, which the model packs")
    if torch.compiler.is_exporting():
        return
    if torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None:
        raise BackendError(f"make_fx cannot trace lengths that are read on the host: {INSTEAD}")


def refuse_reference(name: str) -> None:
    """Refuse torch.export with backend "reference", which reads lengths from a tensor.

    Args:
        name: of the backend.

    Raises: BackendError.
    """
    if name == "reference" and torch.compiler.is_exporting():
        raise BackendError(
            "torch.export cannot record backend 'reference', which reads lengths from a tensor: "
            f"use backend 'torch' at fixed sizes, or {PROGRAM}"
        )


def refuse_export(sizes: tuple[int | torch.SymInt, ...], **inputs: Tensor | None) -> None:
    """Refuse torch.export of a call whose lengths or positions are data.

    Args:
        sizes: of the batch.
        **inputs: arguments that are read on the host, by name.

    Raises: BackendError: torch.export is recording, and an input is given or a size is dynamic.
    """
    if not torch.compiler.is_exporting():
        return
    for name, given in inputs.items():
        if given is not None:
            raise BackendError(
                f"torch.export cannot record {name}, which is read on the host: export a call "
                f"without it at fixed sizes, or use {PROGRAM}"
            )
    if any(isinstance(size, torch.SymInt) for size in sizes):
        raise BackendError(
            "torch.export cannot record a padded batch of dynamic size: export fixed sizes, or use "
            f"{PROGRAM}"
        )
