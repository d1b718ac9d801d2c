"""What an encoder and a head say of themselves in a model card.

Where in the flow: `save_pretrained` and `push_to_hub` of `NomicBert` and the heads ask for it; the
cards of `Embedder` and `CrossEncoder` begin with `encoder_facts`.
"""

from nomicbert.config import EncoderConfig
from nomicbert.loading.model_card import Card, Snippet
from nomicbert.loading.saved_config import beyond_transformers

NAMES = {"nomic_bert": "NomicBERT", "bert": "BERT"}
# Task of a head -> tag of the hub, and what the model gives.
TASKS = {
    "MaskedLM": ("fill-mask", "words for masked tokens"),
    "SequenceClassification": ("text-classification", "classes of texts"),
    "TokenClassification": ("token-classification", "classes of tokens"),
    "QuestionAnswering": ("question-answering", "the start and the end of an answer in a text"),
}
# Labels that a card lists.
LISTED = 20
NO_TOKENIZER = (
    "`save_pretrained` writes config.json and the weights, but no tokenizer: it is that of the "
    "base model."
)
UNREAD = (
    "transformers' own class for this model type gives other results or refuses the checkpoint: "
    "load it with nomicbert."
)
OURS = """
from nomicbert import KIND

model = KIND.from_pretrained(MODEL)
output = model(input_ids, attention_mask=attention_mask)  # of a tokenizer
"""
THEIRS = """
from transformers import KIND

model = KIND.from_pretrained(MODEL)
"""


def encoder_facts(config: EncoderConfig, parameters: int, dtype: str) -> dict[str, str]:
    """Sizes and kinds, as a card lists them.

    Args:
        config: of the encoder.
        parameters: elements of the whole model.
        dtype: of the parameters.
    """
    positions = f"learned, up to {config.max_position_embeddings}"
    if config.rotary_dim:
        positions = f"rotary, trained up to {config.max_trained_positions} tokens"
        if config.rotary_scaling_factor:
            positions += f", dynamic NTK scaling by {config.rotary_scaling_factor:g} above"
    facts = {
        "Architecture": NAMES[config.model_type],
        "Parameters": f"{parameters:,}, {dtype.removeprefix('torch.')}",
        "Layers": str(config.num_hidden_layers),
        "Hidden size": str(config.hidden_size),
        "Attention heads": str(config.num_attention_heads),
        "Intermediate size": str(config.intermediate_size),
        "Activation": config.hidden_act,
        "Positions": positions,
        "Vocabulary": f"{config.vocab_size:,}",
    }
    if config.num_experts:
        facts["Experts"] = (
            f"{config.num_experts} in every other layer, {config.moe_top_k} per token"
        )
    return facts


def encoder_card(config: EncoderConfig, parameters: int, dtype: str) -> Card:
    """The card of a `NomicBert`."""
    return _card(
        config,
        "NomicBert",
        "AutoModel",
        f"An encoder that maps the tokens of a text to hidden states of {config.hidden_size} "
        "dimensions.",
        "feature-extraction",
        encoder_facts(config, parameters, dtype),
    )


def head_card(
    config: EncoderConfig,
    parameters: int,
    dtype: str,
    kind: str,
    task: str,
    labels: tuple[str, ...],
) -> Card:
    """The card of a head.

    Args:
        config: of the encoder.
        parameters: elements of the whole model.
        dtype: of the parameters.
        kind: class of the head.
        task: of the head.
        labels: of the columns of its logits; () if they have none.
    """
    tag, gives = TASKS[task]
    facts = encoder_facts(config, parameters, dtype)
    if labels:
        more = ", ..." if len(labels) > LISTED else ""
        facts["Labels"] = f"{len(labels)}: {', '.join(labels[:LISTED])}{more}"
    summary = f"A model that gives {gives}."
    return _card(config, kind, f"AutoModelFor{task}", summary, tag, facts)


def transformers_agrees(config: EncoderConfig, max_length: int, task: str = "") -> bool:
    """Whether transformers' own class loads what is saved, and computes the same.

    Args:
        config: of the encoder.
        max_length: maximum tokens per text.
        task: of a head.
    """
    # transformers has no QuestionAnswering for nomic_bert
    lacking = config.model_type == "nomic_bert" and task == "QuestionAnswering"
    return not (lacking or beyond_transformers(config, max_length))


def _card(
    config: EncoderConfig,
    kind: str,
    theirs: str,
    summary: str,
    tag: str,
    facts: dict[str, str],
) -> Card:
    task = theirs.removeprefix("AutoModelFor")
    known = transformers_agrees(config, config.max_position_embeddings, task)
    snippets = [Snippet("nomicbert", OURS.replace("KIND", kind))]
    if known:
        snippets.append(Snippet("transformers", THEIRS.replace("KIND", theirs)))
    return Card(
        kind=kind,
        summary=summary,
        library_name="transformers" if known else "nomicbert",
        pipeline_tag=tag,
        tags=(config.model_type,),
        facts=facts,
        snippets=tuple(snippets),
        notes=(NO_TOKENIZER,) if known else (NO_TOKENIZER, UNREAD),
    )
