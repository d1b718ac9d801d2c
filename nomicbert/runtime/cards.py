"""What `Embedder` and `CrossEncoder` say of themselves in a model card.

Where in the flow: `settings` calls these for `save_pretrained` and `push_to_hub`.
"""

import json
import re
from collections.abc import Mapping

from torch import nn

from nomicbert.config import EncoderConfig
from nomicbert.loading.model_card import Card, Snippet
from nomicbert.modeling.cards import LISTED, UNREAD, encoder_facts, transformers_agrees
from nomicbert.modeling.heads import NomicBertForSequenceClassification
from nomicbert.runtime.activation import Activation, activation_name
from nomicbert.text.prompts import Prompts
from nomicbert.vectors.embedding_model import EmbeddingModel
from nomicbert.vectors.scores import ModularReranker

LIBRARY = "sentence-transformers"
EMBED = """
from LIBRARY import CLASS

model = CLASS(MODEL)
queries = model.encode_query(["What is TSNE?"])
documents = model.encode_document(["TSNE shows data of many dimensions in two."])
print(model.similarity(queries, documents))
"""
# The names that sentence-transformers' encode_query and encode_document look for; others are given.
THEIR_NAMES = {"query", "document"}
SCORE = """
from LIBRARY import CLASS

model = CLASS(MODEL)
print(model.predict([("Who wrote it?", "Harper Lee wrote it."), ("Who wrote it?", "In 1960.")]))
"""
REQUIRED = (
    "The base model was trained with a prompt before every input. `encode_query` and "
    "`encode_document` of nomicbert put it there; `encode` takes `prompt_name`."
)


def embedder_card(
    model: EmbeddingModel,
    prompts: Prompts,
    max_seq_length: int,
    similarity: str,
    truncate_dim: int | None,
) -> Card:
    """The card of an `Embedder`.

    Args:
        model: encoder and pooling.
        prompts: of the embedder.
        max_seq_length: maximum tokens per text.
        similarity: name of the similarity function.
        truncate_dim: columns that `encode` keeps by default, or None.
    """
    pooling, width = model.pooling, model.pooling.embedding_dimension
    steps = [*map(str, pooling.steps), *(["L2"] if pooling.normalize else [])]
    facts = {
        "Dimension": str(width),
        **({} if truncate_dim is None else {"Dimension kept by default": str(truncate_dim)}),
        "Pooling": pooling.mode
        + ("" if pooling.include_prompt else ", without the prompt's tokens"),
        "Modules after pooling": ", ".join(steps) or "none",
        "Maximum length": f"{max_seq_length} tokens",
        "Similarity": similarity,
        **_encoder(model, model.encoder.config, str(model.encoder.dtype)),
    }
    known = transformers_agrees(model.encoder.config, max_seq_length)
    return Card(
        kind="Embedder",
        summary=f"An embedding model that maps a text to a vector of {truncate_dim or width} "
        "dimensions.",
        library_name=LIBRARY if known else "nomicbert",
        pipeline_tag="sentence-similarity",
        tags=_tags(known, "sentence-similarity", "feature-extraction"),
        facts=facts,
        snippets=_snippets(EMBED, "Embedder", "SentenceTransformer", known, prompts),
        prompts=_shown(prompts),
        notes=(*((REQUIRED,) if prompts.required else ()), *(() if known else (UNREAD,))),
    )


def reranker_card(
    model: NomicBertForSequenceClassification,
    prompts: Prompts,
    max_seq_length: int,
    activation: Activation,
) -> Card:
    """The card of a `CrossEncoder`.

    Args:
        model: encoder and head, or encoder and modules.
        prompts: of the reranker.
        max_seq_length: maximum tokens per pair.
        activation: logits -> scores.
    """
    names = model.labels.names
    shown = f": {', '.join(names[:LISTED])}{', ...' if len(names) > LISTED else ''}"
    facts = {
        "Labels": str(len(names)) + (shown if len(names) > 1 else ""),
        "Activation of the scores": activation_name(activation) or "set by the caller, not saved",
        "Maximum length": f"{max_seq_length} tokens per pair",
    }
    if isinstance(model, ModularReranker):
        facts["Pooling"] = model.pooling.mode
        facts["Modules after pooling"] = ", ".join(map(str, model.pooling.steps))
    known = transformers_agrees(model.config, max_seq_length)
    single = len(names) == 1
    return Card(
        kind="CrossEncoder",
        summary="A reranker that gives a pair of texts "
        + ("a score." if single else f"{len(names)} scores."),
        library_name=LIBRARY if known else "nomicbert",
        pipeline_tag="text-ranking" if single else "text-classification",
        tags=_tags(known, "cross-encoder", *(("reranker",) if single else ())),
        facts={**facts, **_encoder(model, model.config, str(model.dtype))},
        snippets=_snippets(SCORE, "CrossEncoder", "CrossEncoder", known),
        prompts=_shown(prompts),
        notes=() if known else (UNREAD,),
    )


def _encoder(model: nn.Module, config: EncoderConfig, dtype: str) -> dict[str, str]:
    count = sum(parameter.numel() for parameter in model.parameters())
    return encoder_facts(config, count, dtype)


def _tags(known: bool, *tags: str) -> tuple[str, ...]:
    return (*((LIBRARY,) if known else ()), *tags)


def _with_prompts(code: str, prompts: Prompts) -> str:
    """The calls of sentence-transformers that put the same prompts before the inputs."""
    # from the last call to the first: a prompt may hold the text of the next call
    for call, name in (("document", prompts.document_name), ("query", prompts.query_name)):
        if name is not None and name not in THEIR_NAMES:
            text = json.dumps(prompts.by_name[name], ensure_ascii=False)
            old = re.search(rf"encode_{call}\((.*)\)", code)
            assert old is not None
            code = code.replace(old[0], f"encode({old[1]}, prompt={text})", 1)
    return code


def _snippets(
    code: str, ours: str, theirs: str, known: bool, prompts: Prompts | None = None
) -> tuple[Snippet, ...]:
    def of(package: str, kind: str) -> str:
        return code.replace("LIBRARY", package).replace("CLASS", kind)

    found = [Snippet("nomicbert", of("nomicbert", ours))]
    if known:
        their = of("sentence_transformers", theirs)
        # last: nothing is replaced in the texts of prompts
        found.append(Snippet(LIBRARY, _with_prompts(their, prompts) if prompts else their))
    return tuple(found)


def _shown(prompts: Prompts) -> Mapping[str, str]:
    """Those that put something before an input."""
    return {name: text for name, text in prompts.by_name.items() if text}
