"""A program of torch.export: B texts of S tokens each -> hidden states or vectors, B and S dynamic.

Any call of a model packs its texts by lengths that are read on the host, which no trace can hold.
Where in the flow: `equal_lengths` is what is recorded; this module refuses what a program cannot
hold, records, and checks the program against eager.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from nomicbert.config import EncoderConfig
from nomicbert.embedder import Embedder
from nomicbert.errors import BackendError, ExportError
from nomicbert.export.equal_lengths import EqualLengths
from nomicbert.modeling.model import NomicBert
from nomicbert.modeling.plain_layers import (
    PLAIN_WEIGHTS,
    is_hooked,
    is_plain,
    is_plain_norm,
    is_plain_table,
)
from nomicbert.runtime.request import Request
from nomicbert.vectors.embedding_model import EmbeddingModel
from nomicbert.vectors.pooling import Finish

# Largest difference to the eager reference, relative to its largest absolute value. Both compute
# in float32 and differ by the order of sums at most; a wrong angle or scale exceeds this by far.
BOUND = 1e-6
# Backends that compute what the program computes: in float32, on source weights.
BACKENDS = ("reference", "torch")


class Sizes(NamedTuple):
    """The sizes of one batch.

    Attributes:
        texts: B.
        tokens: S, of each text.
    """

    texts: int
    tokens: int


# What is recorded. torch.export would make constants of 0 and 1.
EXAMPLE = Sizes(3, 7)


def program(
    model: NomicBert | Embedder,
    *,
    token_type_ids: bool = False,
    matryoshka_dim: int | None = None,
    truncate_dim: int | None = None,
    normalize_embeddings: bool = False,
) -> ExportedProgram:
    """Record a model as a program of torch.export, for texts of one length.

    >>> from nomicbert import EncoderConfig, NomicBert, export
    >>> config = EncoderConfig("bert", 100, 32, 2, 4, 64, 2, 512, 1e-12)
    >>> run = export.program(NomicBert(config).eval()).module()
    >>> run(torch.tensor([[2, 7, 9], [2, 8, 9]])).shape
    torch.Size([2, 3, 32])

    The program takes `input_ids` (B, S) int64 for any B and S from 1, S up to the number of learned
    positions if there are any. It has no mask: every id is a token of its text, padding ids too. It
    computes in float32 with the formulas of backend "reference", and shares its parameters with
    `model`. It is checked before it is returned: at three sizes other than the recorded one, no
    value differs from eager by more than 1e-6 of the largest absolute value.

    Args:
        model: a NomicBert for hidden states (B, S, hidden_size); an Embedder for vectors (B, dim)
            of texts that are tokenised with prompt and special tokens.
        token_type_ids: the program also takes this keyword, (B, S) int64.
        matryoshka_dim: as for `Embedder.encode`, like the next two; for an Embedder only.
        truncate_dim: its default is that of the Embedder.
        normalize_embeddings: apply L2 at the end.

    Returns: the program; torch.export.save writes it, `program.module()` calls it.
    Raises: TypeError, ValueError: another kind of model; an argument of vectors without an
        Embedder, or one that `encode` refuses. BackendError: what a program cannot hold: a
        backend other than torch or reference, another device than a CPU, another dtype than
        float32, training mode, replaced or hooked layers, a prompt that pooling leaves out.
        ExportError: the check failed.
    """
    recorded = EqualLengths(*_parts(model, matryoshka_dim, truncate_dim, normalize_embeddings))
    _refuse(recorded)
    with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False):
        made = _record(recorded, token_type_ids)
        _check(made, recorded, token_type_ids)
    return made


def _record(recorded: EqualLengths, typed: bool) -> ExportedProgram:
    """Export with both sizes dynamic."""
    limit = recorded.encoder.config.learned_positions
    shape = {0: Dim("texts", min=1), 1: Dim("tokens", min=1, max=limit)}
    tokens = min(EXAMPLE.tokens, limit or EXAMPLE.tokens)
    ids, types = _inputs(EXAMPLE._replace(tokens=tokens), recorded)
    return torch.export.export(
        recorded,
        (ids,),
        {"token_type_ids": types} if typed else None,
        dynamic_shapes={"input_ids": shape} | ({"token_type_ids": shape} if typed else {}),
    )


def _parts(
    model: NomicBert | Embedder,
    matryoshka_dim: int | None,
    truncate_dim: int | None,
    normalize_embeddings: bool,
) -> tuple[NomicBert | EmbeddingModel, Finish]:
    """The module to record, and the steps after its pooling."""
    request = Request(
        matryoshka_dim=matryoshka_dim,
        truncate_dim=truncate_dim,
        normalize_embeddings=normalize_embeddings,
    )
    if isinstance(model, Embedder):
        request = request.with_default(model.truncate_dim)
        request.check(model.pooling)
        return model.embedding_model.eval(), request.finish  # as `encode` does
    if not isinstance(model, NomicBert):
        raise TypeError(
            f"model must be a NomicBert or an Embedder, not {type(model).__name__}: of a model "
            "with a head, export its `encoder`"
        )
    if request != Request():
        raise ValueError(
            "matryoshka_dim, truncate_dim and normalize_embeddings are for vectors: give the "
            "Embedder in place of its NomicBert"
        )
    return model, request.finish


def _refuse(recorded: EqualLengths) -> None:
    """Refuse a model that a program would not compute as the model does."""
    encoder, model = recorded.encoder, recorded.model
    if encoder.device.type != "cpu":
        raise BackendError(
            f"a program is recorded on the CPU, not on {encoder.device}: call to('cpu') first"
        )
    if others := {p.dtype for p in model.parameters()} - {torch.float32}:
        raise BackendError(
            f"a program computes in float32, but a parameter is {others.pop()}: load with "
            "dtype=torch.float32, or call float()"
        )
    if any(p.is_inference() for p in model.parameters()):
        raise BackendError(
            "torch.export cannot record parameters that were made in torch.inference_mode: load "
            "the model outside of it"
        )
    if encoder.ops.name not in BACKENDS:
        raise BackendError(
            f"a program computes as backends {' and '.join(BACKENDS)} do, not as "
            f"{encoder.ops.name!r}: load with backend='torch', or call use('torch') on the encoder"
        )
    if encoder.config.learned_positions in (1, 2):
        raise BackendError(
            f"a length of at most {encoder.config.learned_positions} tokens cannot be dynamic: use "
            "torch.export.export at fixed sizes"
        )
    if isinstance(model, EmbeddingModel) and not model.pooling.include_prompt:
        raise BackendError(
            "pooling of this checkpoint leaves out the prompt, which a program cannot tell from "
            "the text: export the hidden states (give `embedder.model`), and pool them"
        )
    for name, module in model.named_modules():
        place = f"{name or 'the model'} ({type(module).__name__})"
        if not _is_own(module):
            raise BackendError(
                f"{place} was replaced, wrapped, hooked or parametrised, and a program holds plain "
                "layers only: merge adapters, and remove hooks and parametrisations first"
            )
        if module.training:
            raise BackendError(f"{place} is in training mode: call eval() first")


def _is_own(module: nn.Module) -> bool:
    """Whether a module is one of this package, with plain layers and parameters, without hooks."""
    if isinstance(module, nn.Linear):
        return is_plain(module)
    if isinstance(module, nn.Embedding):
        return is_plain_table(module)
    if isinstance(module, nn.LayerNorm):
        return is_plain_norm(module)
    own = type(module) is nn.ModuleList or type(module).__module__.startswith("nomicbert.")
    plain = all(type(p) in PLAIN_WEIGHTS for p in module._parameters.values() if p is not None)
    return own and plain and not is_hooked(module)


def _inputs(sizes: Sizes, recorded: EqualLengths) -> tuple[Tensor, Tensor]:
    """Random token ids and types, as two tensors: of one tensor torch.export makes one input."""
    config, generator = recorded.encoder.config, torch.Generator("cpu").manual_seed(sizes.tokens)

    def draw(limit: int) -> Tensor:
        return torch.randint(limit, sizes, generator=generator, device="cpu")

    return draw(config.vocab_size), draw(config.type_vocab_size)


def checked_sizes(config: EncoderConfig) -> Iterator[Sizes]:
    """Three sizes to check: one token, one text, and the longest text whose angles may differ.

    That is one of all learned positions, or beyond the trained length if rotary scaling applies.
    """
    limit = config.learned_positions or 300
    yield Sizes(5, 1)
    yield Sizes(2, min(23, limit))
    if config.rotary_scaling_factor is not None:
        limit = config.max_trained_positions + max(1, config.max_trained_positions // 8)
    yield Sizes(1, limit)


def _check(made: ExportedProgram, recorded: EqualLengths, typed: bool) -> None:
    """Compare a program with eager at other sizes.

    Raises: ExportError: it differs.
    """
    call = made.module()
    for sizes in checked_sizes(recorded.encoder.config):
        ids, types = _inputs(sizes, recorded)
        wanted = recorded.eager(ids, types if typed else None)
        found: Tensor = call(ids, token_type_ids=types) if typed else call(ids)
        error = float((found - wanted).abs().max() / wanted.abs().max())
        if not error <= BOUND:  # NaN is refused too
            raise ExportError(
                f"the program differs from the model by {error:.1e} of the largest value for "
                f"{sizes.texts} texts of {sizes.tokens} tokens, where {BOUND:.0e} is accepted, and "
                "was discarded: report this with the version of torch and the checkpoint"
            )
