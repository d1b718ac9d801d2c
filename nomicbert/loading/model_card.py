"""Write a model card, README.md: metadata for the hub, and what a reader must know to use it.

Where in the flow: the model describes itself as a `Card`, its author adds `ModelCardData`, loading
has noted the `Origin`; `publishing` puts the result next to the weights. Of the training nothing is
said that none of the three knows.
Source: the metadata that Hugging Face documents. huggingface_hub writes it, which quotes each value
as YAML needs it.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from nomicbert.loading.card_data import Evaluation, ModelCardData, as_number
from nomicbert.loading.origin import Origin

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

NAME = "README.md"
# Stands in the snippets until the model has a repository.
PLACEHOLDER = "path/to/this/folder"
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Snippet:
    """How a library loads the model.

    Attributes:
        library: its name.
        code: with `MODEL` where the name of the model stands; prompts may come after it.
    """

    library: str
    code: str


@dataclass(frozen=True)
class Card:
    """What a model says of itself.

    Attributes:
        kind: the class that loads it.
        summary: one sentence.
        library_name: the library that the hub's page shows.
        pipeline_tag: of the hub.
        tags: of the hub.
        facts: name -> value, as texts.
        prompts: name -> text.
        snippets: at least one.
        notes: sentences.
    """

    kind: str
    summary: str
    library_name: str
    pipeline_tag: str
    tags: tuple[str, ...]
    facts: Mapping[str, str]
    snippets: tuple[Snippet, ...]
    prompts: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def render(card: Card, data: ModelCardData, origin: Origin) -> str:
    """The text of README.md.

    Raises: TypeError, ValueError: data that a card cannot hold; the message names it.
    """
    data.check()
    base = _base(data, origin)
    kind = card.kind + (f" based on {base[0]}" if base else "")
    title = data.model_name or data.model_id or kind
    sections = [
        f"---\n{_metadata(card, data, origin, base, title)}\n---",
        f"# {_line(title)}",
        card.summary + (f" Its purpose: {_line(data.task_name)}." if data.task_name else ""),
        *_usage(card, data.model_id or PLACEHOLDER),
        "## Model",
        _table(("", ""), [(_line(key), _cell(value)) for key, value in card.facts.items()]),
        *card.notes,
        *_prompts(card.prompts),
        *_results(data.evaluations),
        "## Origin",
        *_origin(data, origin, base),
    ]
    text = "\n\n".join(sections) + "\n"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the model card would hold {error.object[error.start]!r}, half of a surrogate pair: "
            "correct model_card_data"
        ) from error
    return text


def write(folder: Path, text: str) -> bool:
    """Write a card into a folder that exists; whether there was none. A card is never replaced.

    Raises: OSError: the folder cannot be written.
    """
    path, content = folder / NAME, text.encode("utf-8")
    try:
        file = path.open("xb")
    except FileExistsError:
        return False
    try:
        with file:
            file.write(content)
    except OSError:
        path.unlink(missing_ok=True)  # the next call would keep half a card
        raise
    return True


def has_card(folder: Path) -> bool:
    """Whether `write` would leave a folder's card as it is."""
    path = folder / NAME
    return path.exists() or path.is_symlink()


def _metadata(card: Card, data: ModelCardData, origin: Origin, base: list[str], title: str) -> str:
    from huggingface_hub import ModelCardData as HubData

    trained = [one["id"] for one in data.train_datasets if "id" in one]
    metrics = [name for one in data.evaluations for name in one.metrics]
    found: dict[str, object] = {
        "language": data.language or None,
        **_license(data, origin),
        "library_name": card.library_name,
        "pipeline_tag": card.pipeline_tag,
        "tags": list(dict.fromkeys([*card.tags, "nomicbert", *data.tags])),
        "base_model": base[0] if len(base) == 1 else base or None,
        "datasets": list(dict.fromkeys(trained)) or None,
        "metrics": list(dict.fromkeys(metrics)) or None,
        # of other tasks the hub shows no examples of this form
        "widget": (data.widget or None) if card.pipeline_tag == "sentence-similarity" else None,
    }
    hub = HubData(**found)  # type: ignore[arg-type]  # one mapping for keywords of several types
    if results := [one for evaluation in data.evaluations for one in _eval_results(evaluation)]:
        hub.model_name, hub.eval_results = title, results
    return hub.to_yaml(line_break="\n")


def _eval_results(evaluation: Evaluation) -> Iterable["EvalResult"]:
    """Results as the hub has them; it takes finite numbers only."""
    from huggingface_hub import EvalResult

    task = evaluation.description
    for name, value in evaluation.metrics.items():
        number = as_number(value)
        if number is not None:
            yield EvalResult(
                task_type="-".join(task.lower().split()) or UNKNOWN,
                task_name=task,
                dataset_type=evaluation.dataset or UNKNOWN,
                dataset_name=evaluation.dataset or UNKNOWN,
                metric_type=name,
                metric_name=name,
                metric_value=number,
            )


def _license(data: ModelCardData, origin: Origin) -> Mapping[str, str]:
    """The author's own, whole, or the checkpoint's."""
    own = {
        "license": data.license or ("other" if data.license_name else None),
        "license_name": data.license_name,
        "license_link": data.license_link,
    }
    stated = {key: value for key, value in own.items() if value}
    return stated or origin.license


def _base(data: ModelCardData, origin: Origin) -> list[str]:
    """Repositories that the model was made from, without its own."""
    own = [data.base_model] if isinstance(data.base_model, str) else data.base_model
    found = own or ([origin.repo_id] if origin.repo_id else origin.base_models)
    return [base for base in found if base != data.model_id]


def _usage(card: Card, model_id: str) -> Iterable[str]:
    yield "## Usage"
    for snippet in card.snippets:
        yield f"With {snippet.library}:"
        code = snippet.code.replace("MODEL", json.dumps(model_id, ensure_ascii=False), 1)
        yield f"```python\n{code.strip()}\n```"


def _prompts(prompts: Mapping[str, str]) -> Iterable[str]:
    if prompts:
        yield "## Prompts"
        yield "Text that is put before an input, by name:"
        yield f"```json\n{json.dumps(dict(prompts), ensure_ascii=False, indent=2)}\n```"


def _results(evaluations: Iterable[Evaluation]) -> Iterable[str]:
    for number, one in enumerate(evaluations):
        if not number:
            yield "## Evaluation"
        yield f"### {_line(one.description)}" + (f": {_line(one.dataset)}" if one.dataset else "")
        if one.step > 0:
            yield f"Measured in training, after {one.step} steps (epoch {one.epoch:g})."
        rows = [(_cell(name), _shown(value)) for name, value in one.metrics.items()]
        bold = [
            tuple(f"**{part}**" for part in row) if name == one.primary else row
            for row, name in zip(rows, one.metrics, strict=True)
        ]
        yield _table(("Metric", "Value"), bold)


def _origin(data: ModelCardData, origin: Origin, base: list[str]) -> Iterable[str]:
    commit = origin.commit
    if data.base_model and base:
        named = ", ".join(map(_link, base))
        at = f" at revision `{_line(data.base_model_revision)}`" if data.base_model_revision else ""
        yield f"Base model: {named}{at}."
    elif origin.repo_id:
        yield (
            f"Loaded from {_link(origin.repo_id)}, commit `{commit}`. Whether it was trained "
            "further is not recorded."
        )
    elif base:
        named = ", ".join(map(_link, base))
        yield f"Base model: {named}, by the card of the folder it was loaded from."
    else:
        yield "The base model is not recorded."
    stated = _license(data, origin)
    name = stated.get("license_name") or stated.get("license")
    if name and stated is origin.license:
        yield f"License: {_line(name)}, taken over from the card of the checkpoint that was loaded."
    elif name:
        yield f"License: {_line(name)}."
    else:
        yield "The license is not recorded."
    for what, sets in (("Training", data.train_datasets), ("Evaluation", data.eval_datasets)):
        if sets:
            yield f"{what} data: {', '.join(map(_dataset, sets))}."


def _dataset(stated: Mapping[str, str]) -> str:
    name = _line(stated.get("name") or stated["id"])
    if "id" not in stated:
        return name
    return f"[{name}](https://huggingface.co/datasets/{_line(stated['id'])})"


def _link(repo_id: str) -> str:
    return f"[{_line(repo_id)}](https://huggingface.co/{_line(repo_id)})"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    rule = tuple("---" for _ in head)
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *rows))


def _shown(value: object) -> str:
    number = as_number(value)
    return _cell(str(value)) if number is None or isinstance(value, str) else f"{number:.4f}"


def _cell(text: str) -> str:
    return _line(text).replace("|", "\\|")


def _line(text: str) -> str:
    """Text in one line."""
    return " ".join(text.split())
