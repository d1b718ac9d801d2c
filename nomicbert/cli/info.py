"""`nomicbert info`: inspect a checkpoint without loading its weights.

Where in the flow: `describe` collects the facts; this module prints them as text or as one JSON
document, whose fields docs/info.md lists.
"""

import json
import shutil
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nomicbert.cli import console, options
from nomicbert.cli.options import BackendName, DtypeName

if TYPE_CHECKING:
    from nomicbert.describe import Description

EXAMPLES = """\b
Examples:
  nomicbert info nomic-ai/nomic-embed-text-v1.5
  nomicbert info ./my-checkpoint --local-files-only
  nomicbert info ./my-checkpoint --rotary-scaling-factor 2 --dtype bf16
  nomicbert info ./my-checkpoint --json | jq .embedding_dimension
"""
WIDTH = 80
LABEL = 13
# The MLP's activation -> how it is printed.
MLPS = {
    "swiglu": "SwiGLU",
    "gelu": "GELU",
    "gelu_pytorch_tanh": "GELU by tanh",
    "relu": "ReLU",
    "silu": "SiLU",
    "quick_gelu": "QuickGELU",
}
# Tensor names listed in a line.
LISTED = 4


def info(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A checkpoint's folder or repository id."),
    ],
    revision: options.Revision = None,
    local_files_only: options.LocalFilesOnly = False,
    device: options.Device = "auto",
    dtype: options.Dtype = DtypeName.float32,
    backend: options.Backend = BackendName.auto,
    rotary_scaling_factor: options.RotaryScalingFactor = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document instead of lines.")
    ] = False,
) -> None:
    """Show what a checkpoint contains and how it would run here.

    Reads the checkpoint's settings and the headers of its weight files, not the weights: of a
    repository that is not in the cache a few MB, unless its weights are in .bin files.
    """
    # A slow import, so it follows the checks of the arguments.
    from nomicbert.describe import describe

    description = describe(
        model,
        revision=revision,
        local_files_only=local_files_only,
        device=device,
        dtype=dtype.value,
        backend=backend.value,
        rotary_scaling_factor=rotary_scaling_factor,
    )
    if as_json:
        console.put(json.dumps(as_document(model, description), indent=2))
    else:
        console.put(as_text(model, description))


def as_document(model: str, d: "Description") -> dict[str, Any]:
    """The JSON document; docs/info.md explains each field.

    Fields may be added; existing ones keep their names and meaning.
    """
    config, files, pooling = d.config, d.files, d.pooling
    rotary = config.rotary_dim > 0
    return {
        "model": model,
        "folder": None if d.folder is None else str(d.folder.absolute()),
        "license": d.license and d.license.name,
        "non_commercial": bool(d.license and d.license.non_commercial),
        "model_type": config.model_type,
        "num_hidden_layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "num_attention_heads": config.num_attention_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.intermediate_size,
        "vocab_size": config.vocab_size,
        "tokenizer_size": d.vocabulary,
        "parameters": files.parameters,
        "files": {
            "format": files.format,
            "shards": files.shards,
            "dtypes": files.dtypes,
            "bytes": files.bytes,
            "config_keys": files.config_keys,
            "tensor_prefix": files.tensor_prefix,
            "unread": files.unread,
        },
        "positions": {
            "kind": "rotary" if rotary else "learned",
            "learned": None if rotary else config.max_position_embeddings,
            "theta": config.rope_theta if rotary else None,
            "rotary_dim": config.rotary_dim if rotary else None,
            "interleaved": config.rotary_interleaved if rotary else None,
            "trained_length": config.max_trained_positions if rotary else None,
            "scaling_factor": config.rotary_scaling_factor,
        },
        "mlp": {
            "kind": config.hidden_act,
            "experts": config.num_experts,
            "experts_per_token": config.moe_top_k,
        },
        "pooling": pooling.mode,
        "dense": [
            {"in_features": into, "out_features": out, "activation": activation}
            for into, out, activation in d.dense
        ],
        "steps": d.steps,
        "normalize": pooling.normalize,
        "include_prompt": pooling.include_prompt,
        "embedding_dimension": pooling.embedding_dimension,
        "truncate_dim": d.truncate_dim,
        "matryoshka": d.matryoshka,
        "similarity": d.similarity,
        "prompts": d.prompts.by_name,
        "default_prompt_name": d.prompts.default,
        "prompt_required": d.prompts.required,
        "query_prompt_name": d.query_prompt,
        "document_prompt_name": d.document_prompt,
        "max_seq_length": d.limit.tokens,
        "max_seq_length_source": d.limit.source,
        "backend": {
            "name": d.target.backend,
            "device": d.target.device,
            "dtype": d.target.dtype,
            "computed_in": d.target.computed_in,
            "reason": d.target.reason,
        },
        "notes": d.notes,
    }


def as_text(model: str, d: "Description") -> str:
    """The facts as text, wrapped at 80 columns or the terminal's, except within names and paths."""
    wide = not console.is_terminal(sys.stdout)
    width = WIDTH if wide else min(WIDTH, shutil.get_terminal_size().columns)
    lines = []
    for label, text in _rows(model, d):
        hanging = " " * LABEL
        lines += textwrap.wrap(
            text,
            width,
            initial_indent=label.ljust(LABEL),
            subsequent_indent=hanging,
            break_long_words=False,
            break_on_hyphens=False,
        ) or [label]
    return "\n".join(lines)


def _rows(model: str, d: "Description") -> Iterator[tuple[str, str]]:
    config, files, pooling, target = d.config, d.files, d.pooling, d.target
    yield "checkpoint", model
    if d.folder is None:
        yield "folder", "not fetched: only settings and headers were read"
    elif d.folder != Path(model):
        yield "folder", str(d.folder)
    yield "licence", d.license.name if d.license else "not stated in its card"
    yield "model", f"{config.model_type}, {files.parameters:,} parameters"
    yield (
        "sizes",
        f"{config.num_hidden_layers} layers, hidden {config.hidden_size}, "
        f"{config.num_attention_heads} heads of {config.head_dim}, "
        f"MLP {config.intermediate_size}, vocabulary {config.vocab_size:,}",
    )
    shards = f" in {files.shards} files" if files.shards > 1 else ""
    yield (
        "weights",
        f"{files.format}{shards}, {' and '.join(files.dtypes)}, {files.bytes / 1e6:,.1f} MB",
    )
    prefix = f"{files.tensor_prefix!r} before tensor names" if files.tensor_prefix else "no prefix"
    yield "layout", f"{files.config_keys} config keys, {prefix}"
    if files.unread:
        yield "unread", _listed(files.unread)
    yield "positions", _positions(d)
    kind = MLPS[config.hidden_act]
    experts = f"; {config.num_experts} experts in every second layer, {config.moe_top_k} per token"
    yield "MLP", kind + (experts if config.num_experts else "")
    yield "pooling", ", ".join([pooling.mode, *d.steps])
    yield "embedding", f"{pooling.embedding_dimension} dimensions, similarity {d.similarity}"
    yield "matryoshka", d.matryoshka
    for number, line in enumerate(_prompts(d)):
        yield "" if number else "prompts", line
    yield "max length", f"{d.limit.tokens} tokens ({d.limit.source})"
    dtype = target.dtype
    if target.computed_in != dtype:
        dtype += f", computed in {target.computed_in}"
    yield "backend", f"{target.backend} on {target.device} in {dtype}: {target.reason}"
    for number, note in enumerate(d.notes):
        yield "" if number else "notes", note


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def _positions(d: "Description") -> str:
    config = d.config
    if not config.rotary_dim:
        return f"{config.max_position_embeddings} learned"
    part = "" if config.rotary_dim == config.head_dim else f" on {config.rotary_dim} dimensions"
    factor = config.rotary_scaling_factor
    scaling = f"dynamic NTK factor {factor:g} beyond" if factor else "no scaling beyond"
    return (
        f"rotary{part}, theta {config.rope_theta:g}, trained on {config.max_trained_positions} "
        f"tokens, {scaling}"
    )


def _prompts(d: "Description") -> Iterator[str]:
    names = {
        "default": d.prompts.default,
        "encode_query": d.query_prompt,
        "encode_document": d.document_prompt,
    }
    for name, text in d.prompts.by_name.items():
        used = ", ".join(use for use, chosen in names.items() if chosen == name)
        yield f"{name} = {json.dumps(text, ensure_ascii=False)}" + (f" ({used})" if used else "")
    if d.prompts.required:
        yield "one of them is required for every text"
    elif not d.prompts.by_name:
        yield "none"
