"""References of a comparison: transformers if it reads the checkpoint correctly, else the oracle.

transformers silently ignores much that it cannot read: it initialises missing tensors randomly and
uses defaults for settings with unknown names. So its loading report and its config are checked. If
they do not match the checkpoint, transformers is not used, and the report gives the reason.
"""

import contextlib
import gc
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from nomicbert.errors import to_install
from nomicbert.loading.json_settings import read_json
from nomicbert.loading.tensor_names import IGNORED, canonical
from nomicbert.verify.oracle import Meaning, oracle, read_meaning
from nomicbert.verify.texts import Batch

# Number of tensor names that a reason lists.
LISTED = 3
# Keys of config.json that transformers requires to be integers.
SIZES = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
    "max_position_embeddings", "type_vocab_size", "pad_token_id",
)  # fmt: skip
# Raised by transformers for weights that it cannot load.
REFUSALS = (ValueError, TypeError, KeyError, AttributeError, RuntimeError, OSError)


class NotComparableError(Exception):
    """transformers does not read this checkpoint correctly; the message says why."""


class Encoder(Protocol):
    """A reference for hidden states.

    Attributes:
        name: with its version.
        forms: implementations of attention that it offers; the first is the default.
        reason: why the reference is not transformers; empty if it is.
        device: of the computation.
    """

    name: str
    forms: tuple[str, ...]
    reason: str
    device: torch.device

    def states(self, batch: Batch, dtype: torch.dtype, form: str) -> Tensor:
        """(layers + 1, tokens, hidden) of the texts concatenated, on the CPU."""

    def margins(self, batch: Batch) -> Tensor | None:
        """(tokens,) routing margins, see `oracle`; None without experts."""


def need_transformers() -> None:
    """Check that transformers is installed.

    Raises: ImportError: it is not; the message says what to install.
    """
    if find_spec("transformers") is None:
        raise ImportError(f"verify compares with transformers: {to_install('verify')}")


def choose(folder: Path, device: torch.device) -> Encoder:
    """The reference for an encoder's folder: transformers, or the oracle with the reason."""
    reference = Transformers(folder, device)
    try:
        reference.check()
    except NotComparableError as error:
        return Formula(folder, device, str(error))
    return reference


class Transformers:
    """transformers' own class for the folder's model_type."""

    forms: tuple[str, ...] = ("sdpa", "eager")
    reason = ""

    def __init__(self, folder: Path, device: torch.device) -> None:
        """Nothing is loaded yet."""
        self.folder, self.device = folder, device
        self.config = read_json(folder / "config.json")
        self.kind = "BertModel" if self.config["model_type"] == "bert" else "NomicBertModel"
        self.name = f"transformers {version('transformers')}, {self.kind}"

    def check(self) -> None:
        """Load the checkpoint once and check that it was read correctly.

        Raises: NotComparableError.
        """
        meaning = read_meaning(self.config)
        reason = _refused(self.config)
        if self.kind == "NomicBertModel":
            reason = reason or _beyond(meaning)
        if not reason:
            with quiet():
                config = self._class().config_class.from_pretrained(self.folder)
            reason = _misread(meaning, config)
        if reason:
            raise NotComparableError(reason)
        self.load(torch.float32, self.forms[0])

    def load(self, dtype: torch.dtype, form: str) -> torch.nn.Module:
        """The model in eval mode, with every tensor of the encoder read from the file.

        Raises: NotComparableError: a tensor was not read, or loading failed.
        """
        more = {} if self.kind == "NomicBertModel" else {"add_pooling_layer": False}
        with quiet():
            try:
                model, report = self._class().from_pretrained(
                    self.folder,
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,
                    local_files_only=True,
                    dtype=dtype,
                    attn_implementation=form,
                    **more,
                )
            except REFUSALS as error:
                raise NotComparableError(f"transformers cannot load it: {error}") from error
        if reason := _left_out(report):
            raise NotComparableError(reason)
        placed: torch.nn.Module = model.to(self.device).eval()
        return placed

    @torch.no_grad()
    def states(self, batch: Batch, dtype: torch.dtype, form: str) -> Tensor:
        """See Encoder."""
        model, arguments = self.load(dtype, form), batch.padded(self.device)
        found = model(**arguments, output_hidden_states=True).hidden_states
        kept = arguments["attention_mask"].bool()
        states = torch.stack([state[kept] for state in found]).cpu()
        del model
        gc.collect()
        return states

    def margins(self, batch: Batch) -> Tensor | None:
        """See Encoder: transformers' classes have no experts."""
        return None

    def _class(self) -> Any:
        import transformers

        found = getattr(transformers, self.kind, None)
        if found is None:
            raise NotComparableError(f"{self.name} does not exist: it needs 5.20 or later")
        return found


class Formula:
    """The oracle as a reference, for checkpoints that transformers does not read correctly.

    Reports name it "the formula".
    """

    forms: tuple[str, ...] = ("formula",)

    def __init__(self, folder: Path, device: torch.device, reason: str) -> None:
        """`reason` says why the reference is not transformers."""
        self.folder, self.device, self.reason = folder, device, reason
        self.config = read_json(folder / "config.json")
        self.name = "the formula in float64"

    def states(self, batch: Batch, dtype: torch.dtype, form: str) -> Tensor:
        """See Encoder; computed in float64 for float32, because it serves as the truth."""
        wide = torch.float64 if dtype == torch.float32 else dtype
        return self._run(batch, wide)[0].cpu()

    def margins(self, batch: Batch) -> Tensor | None:
        """See Encoder."""
        margins = self._run(batch, torch.float64)[1]
        return None if margins is None else margins.cpu()

    def _run(self, batch: Batch, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        return oracle(
            self.folder, self.config, batch.ids, batch.types, dtype=dtype, device=self.device
        )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the progress bars and reports of transformers; this module reports the problems."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def token_ids(folder: Path, texts: Sequence[str], longest: int) -> list[list[int]]:
    """Token ids of each text by transformers' tokenizer, cut at `longest`."""
    from transformers import AutoTokenizer, BertConfig

    config = read_json(folder / "config.json")

    with quiet():
        # with any given config it does not read config.json, which it might refuse
        tokenizer = AutoTokenizer.from_pretrained(
            folder,
            config=BertConfig(tokenizer_class=config.get("tokenizer_class")),
            local_files_only=True,
        )
        encoded = tokenizer(list(texts), truncation=True, max_length=longest, padding=False)
    ids: list[list[int]] = encoded["input_ids"]
    return ids


def _refused(config: Mapping[str, Any]) -> str:
    """Sizes that are floats in config.json, which transformers refuses."""
    found = [f"{name} {config[name]}" for name in SIZES if isinstance(config.get(name), float)]
    return f"transformers refuses sizes that are floats: {', '.join(found)}" if found else ""


def _beyond(m: Meaning) -> str:
    """Features of the checkpoint that transformers' NomicBertModel does not support."""
    size = m.width // m.heads
    lacking = [
        ("mixtures of experts", m.top_k > 0),
        ("an MLP without a gate", not m.gated),
        ("biases in its linear layers", m.biased),
        (f"rotary angles on {m.rotary_dims} of {size} dimensions", m.rotary_dims != size),
        ("rotary angles on neighbouring dimensions", m.interleaved),
    ]
    found = [what for what, has in lacking if has]
    if not found:
        return ""
    return f"it has {', '.join(found)}, which transformers' NomicBertModel ignores or refuses"


def _misread(m: Meaning, config: Any) -> str:
    """Settings that transformers misreads, because it knows only its own family of keys."""
    theirs = {
        "hidden_size": (config.hidden_size, m.width),
        "num_hidden_layers": (config.num_hidden_layers, m.layers),
        "num_attention_heads": (config.num_attention_heads, m.heads),
        "layer_norm_eps": (config.layer_norm_eps, m.eps),
        "type_vocab_size": (config.type_vocab_size, m.types),
    }
    if m.rotary_dims:
        theirs["rope_theta"] = (config.rope_parameters["rope_theta"], m.theta)
    wrong = [f"{name} {a:g} instead of {b:g}" for name, (a, b) in theirs.items() if a != b]
    return f"transformers misreads its config.json: {', '.join(wrong)}" if wrong else ""


def _left_out(report: dict[str, Any]) -> str:
    """Tensors of the encoder that transformers initialised randomly or did not read."""
    mismatched = [key if isinstance(key, str) else key[0] for key in report["mismatched_keys"]]
    missing = [*report["missing_keys"], *mismatched]
    missing = sorted(name for name in missing if not IGNORED.fullmatch(canonical(name)))
    unread = report["unexpected_keys"]
    unread = sorted(name for name in unread if not IGNORED.fullmatch(canonical(name)))
    parts = [
        f"{what} {len(names)} of its tensors ({', '.join(names[:LISTED])}"
        f"{', ...' if len(names) > LISTED else ''})"
        for what, names in (("leaves unread", unread), ("fills at random", missing))
        if names
    ]
    return f"transformers {' and '.join(parts)}" if parts else ""
