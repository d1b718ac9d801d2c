"""The checkpoint's prompts (texts prepended to the input), by name.

Source: config_sentence_transformers.json; the four task prefixes of nomic-embed-text-v1.5's card.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from nomicbert.config import EncoderConfig
from nomicbert.errors import ConfigError
from nomicbert.loading.folder import StatedPrompts
from nomicbert.user_warnings import PromptWarning, warn

NOMIC_TASKS = ("search_query", "search_document", "classification", "clustering")
CARDS_PROMPTS = {task: f"{task}: " for task in NOMIC_TASKS}
# in order of preference: sentence-transformers' own names, then the card's
QUERY_NAMES = ("query", "search_query")
DOCUMENT_NAMES = ("document", "passage", "corpus", "search_document")


@dataclass
class Prompts:
    """Prompts by name.

    Attributes:
        by_name: name -> text prepended to the input.
        default: the name used when a call gives none, or None.
        required: whether the checkpoint's card requires a prompt.
    """

    by_name: dict[str, str] = field(default_factory=dict)
    default: str | None = None
    required: bool = False
    _warned: bool = field(default=False, repr=False)

    @classmethod
    def of(cls, stated: StatedPrompts, config: EncoderConfig) -> "Prompts":
        """The prompts of a checkpoint; a NomicBERT checkpoint without any gets its card's four.

        Raises: ConfigError: not a mapping of names to texts, or the default is not among them.
        """
        shipped, default, path = stated.by_name or {}, stated.default, stated.path
        if not isinstance(shipped, dict) or not all(isinstance(t, str) for t in shipped.values()):
            raise ConfigError(f"{path}: prompts must be an object of names and texts")
        if default is not None and (not isinstance(default, str) or default not in shipped):
            raise ConfigError(f"{path}: default_prompt_name {default!r} is not among its prompts")
        # sentence-transformers writes empty prompts for checkpoints that have none
        if any(shipped.values()) or config.model_type != "nomic_bert":
            return cls(dict(shipped), default)
        return cls(dict(CARDS_PROMPTS), required=True)

    @property
    def query_name(self) -> str | None:
        """Name of the prompt for queries, or None."""
        return self._first_of(QUERY_NAMES)

    @property
    def document_name(self) -> str | None:
        """Name of the prompt for documents, or None."""
        return self._first_of(DOCUMENT_NAMES)

    def choose(self, name: str | None, prompt: str | None) -> str:
        """The text to prepend to the inputs of a call.

        Raises: ValueError: unknown name, or both a name and a text. TypeError: prompt is not a str.
        """
        if prompt is not None:
            if not isinstance(prompt, str):
                raise TypeError(f"prompt must be a str, not {prompt!r}")
            if name is not None:
                raise ValueError("give prompt_name or prompt, not both")
            if any("\ud800" <= character <= "\udfff" for character in prompt):
                raise ValueError(f"prompt {prompt!r} is not valid Unicode: it has a lone surrogate")
            return prompt
        name = self.default if name is None else name
        if name is None:
            return ""
        if name in (QUERY_NAMES[0], DOCUMENT_NAMES[0]) and not any(self.by_name.values()):
            return ""  # sentence-transformers defines these two, empty, if none are shipped
        if name not in self.by_name:
            known = ", ".join(map(repr, self.by_name)) or "none"
            raise ValueError(f"unknown prompt_name {name!r}; this checkpoint has: {known}")
        return self.by_name[name]

    def _first_of(self, names: Sequence[str]) -> str | None:
        return next((name for name in names if name in self.by_name), None)

    def watch(self, prompt: str, texts: Iterable[str]) -> Iterator[str]:
        """Yield the texts unchanged; warn once if a text lacks a required prompt."""
        known = tuple(self.by_name.values())
        for text in texts:
            if self.required and not (prompt or self._warned or text.startswith(known)):
                self._warned = True
                warn(
                    "this checkpoint was trained with a task prefix before every text: give "
                    f"prompt_name ({', '.join(map(repr, self.by_name))}), or call encode_query "
                    "and encode_document",
                    PromptWarning,
                )
            yield text
