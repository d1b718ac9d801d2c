"""The tokens that a checkpoint adds to its vocabulary, from the five places that may state them.

`added_tokens_decoder` of tokenizer_config.json lists all of them, if it is there. Otherwise
added_tokens.json and tokenizer.json do; the special tokens by name, such as `cls_token`, come from
special_tokens_map.json or else from tokenizer_config.json. `extra_special_tokens` (formerly
`additional_special_tokens`) are further ones, without a name or with a name of their own.

Source: the behaviour of transformers 5.23, whose order decides the ids of tokens that are new.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as RustTokenizer

from nomicbert.errors import TokenizerError
from nomicbert.loading.json_settings import Settings, optional

NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
PROPERTIES = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
# How tokenizer_config.json marks an object as a token.
TYPED = {"__type": "AddedToken"}
EXTRA, FORMERLY = "extra_special_tokens", "additional_special_tokens"
KINDS: Mapping[str, tuple[type, ...]] = {
    EXTRA: (list, dict),
    FORMERLY: (list, dict),
    "model_specific_special_tokens": (dict,),
    "added_tokens_decoder": (dict,),
}


@dataclass(frozen=True)
class AddedTokens:
    """The tokens that the files of one tokenizer add.

    Attributes:
        named: special tokens by name.
        listed: tokens of the files that list all, in the order of their ids.
        special: the named tokens and those without a name, in the order in which they are added.
    """

    named: Mapping[str, AddedToken]
    listed: tuple[AddedToken, ...]
    special: tuple[AddedToken, ...]

    @classmethod
    def read(
        cls, stated: Settings, defaults: Mapping[str, str], whole: RustTokenizer | None
    ) -> "AddedTokens":
        """Read special_tokens_map.json and added_tokens.json too.

        Args:
            stated: tokenizer_config.json.
            defaults: texts of the special tokens that the files do not name.
            whole: tokenizer.json, or None.

        Raises: ConfigError, TokenizerError: a file is damaged, or a token is not one.
        """
        folder, raw = stated.path.parent, dict(stated.raw)
        _check_kinds(stated)
        if not raw.get(EXTRA) and FORMERLY in raw:
            raw[EXTRA] = raw.pop(FORMERLY)
        specific = _other_names(raw) or dict(raw.get("model_specific_special_tokens") or {})
        specific |= _pop_object(raw, EXTRA)
        lists = raw.get("added_tokens_decoder")
        if lists is None:
            special_map = optional(folder / "special_tokens_map.json")
            _check_kinds(special_map)
            _override(raw, special_map.raw)
        specific = _other_names(raw) | specific | _pop_object(raw, EXTRA)
        names = {key: raw.get(key, defaults.get(key)) for key in NAMES} | specific
        names = {key: value for key, value in names.items() if value is not None}
        nameless = list((raw[EXTRA] if EXTRA in raw else raw.get(FORMERLY)) or ())
        # each only once, as stated: a repetition would undo other properties stated in between
        distinct = {json.dumps(v, sort_keys=True): v for v in (*names.values(), *nameless)}
        special = tuple(as_token(stated.path, value) for value in distinct.values())
        if lists is not None:
            listed = {
                _id(stated.path, i): as_token(stated.path, value) for i, value in lists.items()
            }
        else:
            listed = _texts(stated.path, raw)
            listed |= {} if whole is None else whole.get_added_tokens_decoder()
        named = {key: as_token(stated.path, value) for key, value in names.items()}
        return cls(named, tuple(listed[i] for i in sorted(listed)), special)

    def add_to(self, rust: RustTokenizer) -> None:
        """Add all tokens; those of the vocabulary keep their ids, the others get the next ones.

        Raises: TokenizerError: two tokens have the same normalised form. The library would match
            one of them, chosen at random when the process starts.
        """
        here = rust.get_added_tokens_decoder().values()
        known = {token.content for token in (*here, *self.listed)}
        named = {token.content for token in self.named.values()}
        tokens = [*self.listed, *(token for token in self.special if token.content not in known)]
        for token in tokens:
            token.special = token.special or token.content in named
        rust.add_tokens(tokens)
        forms: dict[str, str] = {}
        for token in rust.get_added_tokens_decoder().values():
            if token.normalized and rust.normalizer is not None:
                form = rust.normalizer.normalize_str(token.content)
                if form in forms:
                    raise TokenizerError(
                        f"the added tokens {forms[form]!r} and {token.content!r} have the same "
                        f"normalised form, {form!r}: remove one, or set normalized to false"
                    )
                forms[form] = token.content


def _texts(path: Path, raw: Mapping[str, Any]) -> dict[int, AddedToken]:
    """The tokens of added_tokens.json; those that are not special are matched normalised."""
    # transformers overlooks special tokens that tokenizer_config.json states as objects
    values = [*(raw.get(key) for key in NAMES), *(raw.get(EXTRA) or ())]
    plain = [v for v in values if v and not (isinstance(v, dict) and "__type" in v)]
    special = {as_token(path, value).content for value in plain}
    added = optional(path.parent / "added_tokens.json")
    return {
        _id(added.path, i): AddedToken(
            text, normalized=text not in special, special=text in special
        )
        for text, i in added.raw.items()
    }


def _check_kinds(settings: Settings) -> None:
    for key, kinds in KINDS.items():
        value = settings.raw.get(key)
        if value is not None and not isinstance(value, kinds):
            wanted = " or ".join("a list" if kind is list else "an object" for kind in kinds)
            raise TokenizerError(f"{settings.path}: {key} must be {wanted}, not {value!r:.80}")


def _id(path: Path, value: Any) -> int:
    """A token's id; as a key of an object it is a text."""
    if isinstance(value, str) and re.fullmatch("[0-9]{1,10}", value):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**32:
        raise TokenizerError(f"{path} states {value!r:.80} as the id of a token")
    return value


def _override(raw: dict[str, Any], special: Mapping[str, Any]) -> None:
    """Put the keys of special_tokens_map.json in place of those of tokenizer_config.json."""
    for key, value in special.items():
        if key == EXTRA and isinstance(value, list):
            value = [*(raw.get(EXTRA) or ()), *value]
        elif key != EXTRA and isinstance(value, dict):
            value = {**value, "special": True} | ({} if key in NAMES else TYPED)
        raw[key] = value


def _other_names(raw: dict[str, Any]) -> dict[str, Any]:
    """Remove and return the special tokens under names that only this checkpoint has."""
    names = [
        key
        for key, value in raw.items()
        if key.endswith("_token") and key not in NAMES and isinstance(value, str | dict)
    ]
    found = {key: raw.pop(key) for key in names}
    # transformers takes another object for a setting of the checkpoint's own
    return {key: v for key, v in found.items() if isinstance(v, str) or TYPED.items() <= v.items()}


def _pop_object(raw: dict[str, Any], key: str) -> dict[str, Any]:
    return raw.pop(key) if isinstance(raw.get(key), dict) else {}


def as_token(path: Path, value: Any) -> AddedToken:
    """A token as settings files state it: its text, or an object of its properties.

    Raises: TokenizerError: it is neither.
    """
    if isinstance(value, str):
        return AddedToken(value, special=True)
    if isinstance(value, dict) and isinstance(value.get("content"), str):
        found = {key: value[key] for key in PROPERTIES if key in value}
        if all(isinstance(flag, bool) for key, flag in found.items() if key != "content"):
            return AddedToken(**found)
    raise TokenizerError(
        f"{path}, or a file next to it, states the token {value!r:.80}: that is neither a text nor "
        "an object with content and flags"
    )
