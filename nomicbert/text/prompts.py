"""The checkpoint's prompts (texts prepended to the input), by name.

Source: config_sentence_transformers.json; the four task prefixes of nomic-embed-text-v1.5's card.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from nomicbert.config import EncoderConfig
from nomicbert.errors import ConfigError
from nomicbert.loading.folder import StatedPrompts
from nomicbert.user_warnings import PromptWarning, warn

NOMIC_TASKS = ("search_query", "search_document", "classification", "clustering")
CARDS_PROMPTS = {task: f"{task}: " for task in NOMIC_TASKS}
# in order of preference: sentence-transformers' own names, then the card's
QUERY_NAMES = ("query", "search_query")
DOCUMENT_NAMES = ("document", "passage", "corpus", "search_document")
# name that may stand for no prompt -> other names of the same purpose
OTHERS = {names[0]: names[1:] for names in (QUERY_NAMES, DOCUMENT_NAMES)}


@dataclass
class Prompts:
    """Prompts by name.

    Attributes:
        by_name: name -> text prepended to the input.
        default: the name used when a call gives none, or None.
        required: whether the checkpoint's card requires a prompt.
        implied: names that stand for no prompt where the checkpoint ships neither them nor others.
        cards: whether a checkpoint without prompts gets its card's four when it is loaded.
    """

    by_name: dict[str, str] = field(default_factory=dict)
    default: str | None = None
    required: bool = False
    implied: tuple[str, ...] = (QUERY_NAMES[0], DOCUMENT_NAMES[0])
    cards: bool = False
    _warned: bool = field(default=False, repr=False)

    @classmethod
    def of(cls, stated: StatedPrompts, config: EncoderConfig) -> "Prompts":
        """The prompts of a checkpoint; a NomicBERT checkpoint without any gets its card's four.

        Raises: ConfigError: not a mapping of names to texts, or the default is not among them.
        """
        cards = config.model_type == "nomic_bert"
        found = _read(cls(), stated)
        # sentence-transformers writes empty prompts for checkpoints that have none
        if cards and not any(found.by_name.values()):
            return cls(dict(CARDS_PROMPTS), required=True, cards=True)
        found.cards = cards
        return found

    @classmethod
    def of_reranker(cls, stated: StatedPrompts) -> "Prompts":
        """The prompts of a reranker: those that it ships; raises as `of`."""
        return _read(cls({}, implied=()), stated)

    def replaced(self, by_name: dict[str, str], default: str | None) -> "Prompts":
        """Other prompts; required while the card's are among them.

        Raises: TypeError, ValueError: as `check`.
        """
        found = replace(self, by_name=by_name, default=default)
        found.check()
        found.by_name = dict(by_name)
        found.required = self.required and CARDS_PROMPTS.items() <= by_name.items()
        return found

    def check(self) -> None:
        """Refuse prompts that could not be saved and loaded; a caller may have changed the dict.

        Raises: TypeError, ValueError: not a dict of names and texts, invalid Unicode, a default
            that is not among the names, or no prompts where loading would bring the card's.
        """
        pairs = list(self.by_name.items()) if isinstance(self.by_name, dict) else [(None, None)]
        if not all(isinstance(part, str) for pair in pairs for part in pair):
            raise TypeError(
                f"prompts must be an object of names and texts, a dict of str, not {self.by_name!r}"
            )
        for part in (part for pair in pairs for part in pair):
            _check_unicode(str(part))
        if self.default is not None and not self._knows(self.default):
            known = ", ".join(map(repr, self.by_name)) or "none"
            raise ValueError(
                f"default_prompt_name {self.default!r} is not among its prompts, which are: {known}"
            )
        if self.cards and not any(self.by_name.values()):
            raise ValueError(
                "this checkpoint cannot be without prompts, because it would get its card's when "
                "it is loaded again: give prompt='' to a call"
            )

    def _knows(self, name: object) -> bool:
        return isinstance(name, str) and (name in self.by_name or self._stands_for_none(name))

    def _stands_for_none(self, name: str) -> bool:
        """Whether this is the name of a kind of text that gets no prompt here.

        Not where the checkpoint has other names, such as search_query, for the same purpose.
        """
        shipped = [known for known, text in self.by_name.items() if text]
        return name in self.implied and not set(shipped).difference(self.implied)

    @property
    def query_name(self) -> str | None:
        """Name of the prompt for queries, or None."""
        return self._first_of(QUERY_NAMES)

    @property
    def document_name(self) -> str | None:
        """Name of the prompt for documents, or None."""
        return self._first_of(DOCUMENT_NAMES)

    def choose(self, name: str | None, prompt: str | None) -> str:
        """The text to prepend to the inputs of a call; a prompt wins over a name, with a warning.

        Raises: ValueError: unknown name, invalid Unicode. TypeError: not a str.
        """
        if prompt is not None:
            if not isinstance(prompt, str):
                raise TypeError(f"prompt must be a str, not {prompt!r}")
            _check_unicode(prompt)
            if name is not None:
                warn(f"prompt and prompt_name are given: {name!r} is ignored", PromptWarning)
            return prompt
        name = self.default if name is None else name
        if name is None:
            return ""
        if not self._knows(name):
            known = ", ".join(map(repr, self.by_name)) or "none"
            raise ValueError(f"unknown prompt_name {name!r}; this checkpoint has: {known}")
        found = self.by_name.get(name, "")
        if not isinstance(found, str):
            raise TypeError(f"the prompt {name!r} must be a str, not {found!r}")
        _check_unicode(found)  # a caller may have changed the dict
        return found

    def updated(self, by_name: Mapping[str, str], default: str | None) -> "Prompts":
        """With these in place of those of the same names, or added; None keeps the default.

        Names that stand for no prompt are added, as sentence-transformers does when it loads. One
        without a text is dropped where it would hide a given one, as "document" would "passage".

        Raises: TypeError, ValueError: as `check`.
        """
        blank = {name: "" for name in self.implied if self._stands_for_none(name)}
        known = {**blank, **self.by_name}
        for name in self.implied:
            if not known.get(name) and by_name.keys() & set(OTHERS[name]):
                known.pop(name, None)
        return self.replaced({**known, **by_name}, default or self.default)

    def _first_of(self, names: Sequence[str]) -> str | None:
        return next((name for name in names if name in self.by_name), None)

    def watch(self, prompt: str, texts: Iterable[str]) -> Iterator[str]:
        """Yield the texts unchanged; warn once if a text lacks a required prompt."""
        known = tuple(text for text in self.by_name.values() if text)
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


def _read(prompts: Prompts, stated: StatedPrompts) -> Prompts:
    shipped = stated.by_name or {}
    if isinstance(shipped, dict):  # null is no prompt
        shipped = {name: "" if text is None else text for name, text in shipped.items()}
    prompts.by_name, prompts.default = shipped, stated.default
    try:
        prompts.check()
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{stated.path}: {error}") from error
    prompts.by_name = dict(shipped)
    return prompts


def _check_unicode(text: str) -> None:
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(f"prompt {text!r} is not valid Unicode: it has a lone surrogate")
