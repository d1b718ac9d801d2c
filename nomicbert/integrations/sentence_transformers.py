"""The encoder as a module of sentence-transformers: its trainer, losses and evaluators, our ops.

`as_sentence_transformer` makes a SentenceTransformer with all modules and prompts of a checkpoint.
`model.save_pretrained` names this class in modules.json: `Embedder` loads such a folder, while
sentence-transformers asks for `trust_remote_code=True`. `save_portable` names its own class.
"""

import json
import os
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from nomicbert.embedder import Embedder
from nomicbert.errors import ConfigError, to_install
from nomicbert.loading import hub
from nomicbert.loading.folder import read_folder
from nomicbert.loading.saved_config import beyond_transformers
from nomicbert.loading.target import check_keywords
from nomicbert.modeling.model import NomicBert
from nomicbert.modeling.packing import unpad
from nomicbert.runtime.inputs import as_texts
from nomicbert.runtime.prompt_tokens import prompt_tokens
from nomicbert.text.max_length import check_limit, stated_limit
from nomicbert.text.tokenizer import Tokenizer
from nomicbert.vectors.saving import save_pooling

try:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import InputModule
    from sentence_transformers.sentence_transformer import modules as theirs
except ImportError as error:
    raise ImportError(
        "nomicbert.integrations.sentence_transformers needs sentence-transformers 6 or later: "
        f"{to_install('sentence-transformers')}"
    ) from error

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from nomicbert.loading.pretrained import EmbedderKeywords, ModelKeywords


class Transformer(InputModule):  # type: ignore[misc]  # that library has no types here
    """Texts -> hidden states of their tokens, in place of sentence-transformers' Transformer.

    Attributes:
        model: the encoder.
        tokenizer: of this package, not of transformers.
    """

    config_file_name = "sentence_bert_config.json"

    def __init__(self, model: NomicBert, tokenizer: Tokenizer, max_seq_length: int) -> None:
        """Keep references; `load` reads a folder."""
        super().__init__()
        self.model, self.tokenizer, self.max_seq_length = model, tokenizer, max_seq_length

    @property
    def max_seq_length(self) -> int:
        """Maximum tokens per text, special ones included; longer texts are cut silently."""
        return self._max_seq_length

    @max_seq_length.setter
    def max_seq_length(self, value: int) -> None:
        least, config = self.tokenizer.shortest, self.model.config
        self._max_seq_length = check_limit(value, least, config, "max_seq_length")

    def get_embedding_dimension(self) -> int:
        """Width of the hidden states."""
        return self.model.config.hidden_size

    def get_config_dict(self) -> dict[str, Any]:
        """What `save` writes into sentence_bert_config.json."""
        return {
            "max_seq_length": self.max_seq_length,
            "do_lower_case": self.tokenizer.lower_case,
        }

    def preprocess(
        self, inputs: list[str], prompt: str | None = None, *, task: str | None = None
    ) -> dict[str, Any]:
        """Tokenise n texts: input_ids and attention_mask, (n, longest) int64; prompt_length.

        `task` ("query" or "document") changes nothing. TypeError, TextError: not texts.
        """
        texts = [(prompt or "") + text for text in as_texts(inputs)[0]]
        ids, _ = self.tokenizer.encode(texts, self.max_seq_length)
        rows = [torch.tensor(row) for row in ids]
        features: dict[str, Any] = {
            "input_ids": pad_sequence(rows, True, self.model.config.pad_token_id),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in rows], True),
        }
        if prompt:
            features["prompt_length"] = prompt_tokens(self.tokenizer, prompt, self.max_seq_length)
        return features

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        """Add token_embeddings, (n, longest, hidden_size) in the model's dtype, to the features."""
        padded = (features["input_ids"], features["attention_mask"], features.get("token_type_ids"))
        batch, padding = unpad(*padded)
        # by its own length, a text's rotary angles do not depend on the batch
        states: Tensor = self.model.encode_packed(replace(batch, rope_lengths=batch.lengths))
        features["token_embeddings"] = padding.pad(states).to(self.model.dtype)
        return features

    def save(self, output_path: str, *, safe_serialization: bool = True) -> None:
        """Write encoder, tokenizer and limit in the hub's layout; safetensors only."""
        if not safe_serialization:
            raise ValueError("safe_serialization must be True: weights are saved as safetensors")
        self.model.save_files(output_path)
        self.tokenizer.save(Path(output_path))
        self.save_config(output_path)

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        *,
        token: str | bool | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        trust_remote_code: bool = False,
        model_kwargs: "ModelKeywords | None" = None,
        backend: str = "torch",
        **others: object,
    ) -> "Transformer":
        """Load the encoder of a checkpoint, as sentence-transformers does for modules.json.

        Args:
            model_name_or_path: a local folder or a repository of the hub.
            subfolder: of it, which holds config.json.
            token: as for `Embedder`; so are revision and local_files_only.
            cache_folder: `cache_dir` of `Embedder`.
            revision: branch, tag or commit.
            local_files_only: never reach for the network.
            trust_remote_code: nothing downloaded is run, whatever its value.
            model_kwargs: keywords of `NomicBert.from_pretrained`: dtype, backend, device, ...
            backend: "torch", which is sentence-transformers' word for neither ONNX nor OpenVINO.
            **others: arguments for transformers' tokenizer and config are refused by name.

        Raises: NomicBertError, TypeError, ValueError: as `Embedder`.
        """
        if backend != "torch":
            raise ValueError(
                f"backend must be 'torch', not {backend!r}: 'int8' and others of this package go "
                "into model_kwargs={'backend': ...}"
            )
        keywords: dict[str, Any] = {**(model_kwargs or {})}
        given = {name: value for name, value in others.items() if value is not None}
        check_keywords({**keywords, **given}, cls.load, NomicBert.from_pretrained)
        folder = hub.resolve(
            model_name_or_path,
            revision=revision,
            cache_dir=cache_folder,
            token=token,
            local_files_only=local_files_only,
        )
        checkpoint = read_folder(folder / subfolder)
        model = NomicBert.from_pretrained(checkpoint, **keywords)
        tokenizer = Tokenizer.from_settings(checkpoint.tokenizer, model.config.vocab_size)
        return cls(model, tokenizer, stated_limit(checkpoint, tokenizer.shortest))


def as_sentence_transformer(
    path_or_repo_id: str | os.PathLike[str], **keywords: "Unpack[EmbedderKeywords]"
) -> SentenceTransformer:
    """Load a checkpoint as a SentenceTransformer: pooling, Dense, Normalize, prompts and all.

    Args:
        path_or_repo_id: a local folder or a repository of the hub.
        **keywords: those of `Embedder`: device (default: the CPU), dtype, backend, pooling, ...

    Returns: a model whose prompts "query" and "document" are those of `Embedder.encode_query` and
        `Embedder.encode_document`, under whatever names the checkpoint has them.
    Raises: NomicBertError, TypeError, ValueError: as `Embedder`.
    """
    embedder = Embedder(path_or_repo_id, **keywords)
    prompts, own = dict(embedder.prompts), embedder._prompts
    for name, chosen in (("query", own.query_name), ("document", own.document_name)):
        if chosen is not None:
            prompts[name] = prompts[chosen]
    with TemporaryDirectory() as folder:
        save_pooling(Path(folder), embedder.pooling, embedder.model.config.hidden_size)
        entries = json.loads(Path(folder, "modules.json").read_text("utf-8"))[1:]
        modules = [
            getattr(theirs, entry["type"].rpartition(".")[2]).load(folder, subfolder=entry["path"])
            for entry in entries
        ]
    encoder = Transformer(embedder.model, embedder.tokenizer, embedder.max_seq_length)
    return SentenceTransformer(
        modules=[encoder, *modules],
        device=str(embedder.device),
        prompts=prompts,
        default_prompt_name=embedder.default_prompt_name,
        similarity_fn_name=embedder.similarity_fn_name,
        truncate_dim=embedder.truncate_dim,
    )


def save_portable(model: SentenceTransformer, folder: str | os.PathLike[str]) -> None:
    """Save a model that sentence-transformers loads without this package and without remote code.

    Args:
        model: begins with a `Transformer` of this module.
        folder: new, or to be written over.

    Raises: ConfigError: transformers' own class would compute other vectors; the error names why,
        and nothing is written. TypeError: another first module.
    """
    first = model[0]
    if not isinstance(first, Transformer):
        raise TypeError(f"model must begin with {Transformer!r}, not {type(first)!r}: use its save")
    if found := beyond_transformers(first.model.config, first.max_seq_length):
        raise ConfigError(
            f"transformers would compute other vectors, because of {' and '.join(found)}: save "
            "with model.save_pretrained(folder), and load that with Embedder(folder)"
        )
    model.save_pretrained(os.fspath(folder))
    path = Path(folder, "modules.json")
    entries = json.loads(path.read_text("utf-8"))
    own = theirs.Transformer
    entries[0]["type"] = f"{own.__module__}.{own.__qualname__}"
    path.write_text(json.dumps(entries, indent=2) + "\n", "utf-8")
