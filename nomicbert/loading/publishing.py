"""Publishing: what all models share to write a model card and to upload themselves.

Where in the flow: base class of `NomicBert`, the heads, `Embedder` and `CrossEncoder`.
Source: the argument names of sentence-transformers 6 and transformers 5.
"""

import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, cast

from torch import nn

from nomicbert.arguments import refuse_unknown
from nomicbert.loading import hub_upload, model_card
from nomicbert.loading.card_data import ModelCardData, as_datasets
from nomicbert.loading.model_card import Card
from nomicbert.loading.origin import Origin

if TYPE_CHECKING:
    from typing_extensions import Unpack

logger = logging.getLogger(__name__)


class Refused(TypedDict):
    """No further keyword: a misspelt one is refused, at run time with the nearest known one."""


class PushKeywords(TypedDict, total=False):
    """Those keywords of `push_to_hub` that `save_to_hub` hands on."""

    token: str | bool | None
    safe_serialization: bool
    commit_message: str | None
    commit_description: str | None
    local_model_path: str | os.PathLike[str] | None
    exist_ok: bool | None
    replace_model_card: bool
    train_datasets: Sequence[str] | None
    revision: str | None
    create_pr: bool
    tags: Sequence[str] | None


class Publishing:
    """A model that can be saved with a card, and uploaded."""

    # whether `push_to_hub` adds to a repository that exists, as the library with the method does
    _exist_ok = False
    _card_data: ModelCardData | None = None

    @property
    def model_card_data(self) -> ModelCardData:
        """What its author knows of the model, for the model card. May be changed or replaced."""
        if self._card_data is None:
            self._card_data = ModelCardData()
        return self._card_data

    @model_card_data.setter
    def model_card_data(self, value: ModelCardData | None) -> None:
        if not isinstance(value, cast("type", ModelCardData | None)):
            kind = type(value)
            raise TypeError(
                "model_card_data must be a nomicbert.ModelCardData, which takes the same "
                f"arguments, not {kind.__module__}.{kind.__qualname__}"
            )
        self._card_data = value

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write all that loading needs, and a model card if the folder has none."""
        raise NotImplementedError

    def _card(self) -> Card:
        """What the model says of itself."""
        raise NotImplementedError

    def _origin(self) -> Origin:
        """What it was loaded from."""
        raise NotImplementedError

    def _note_for_card(
        self,
        model_name: str | None,
        train_datasets: Sequence[str] | None,
        safe_serialization: bool | None,
    ) -> None:
        """Add what a call that saves says of the model to `model_card_data`.

        Args:
            model_name: repository, or a title.
            train_datasets: ids or names; those that are there already are not added.
            safe_serialization: must not be False.

        Raises: ValueError, TypeError: safe_serialization=False, or an invalid name.
        """
        if safe_serialization is not None and not safe_serialization:
            raise ValueError("safe_serialization=False is not supported: weights are safetensors")
        data = self.model_card_data
        for one in as_datasets("train_datasets", _unspread(train_datasets)):
            if one not in data.train_datasets:
                data.train_datasets.append(one)
        if model_name is not None and model_name.count("/") == 1:
            data.set_model_id(model_name)
        elif model_name is not None:
            data.model_name = model_name

    @contextmanager
    def _carded(self, folder: str | os.PathLike[str]) -> Iterator[None]:
        """Write a card into a folder that has none, after the files that are written inside.

        Raises: ValueError, TypeError: invalid `model_card_data`, before anything is written.
        """
        place = Path(folder)
        text = None if model_card.has_card(place) else self._rendered()
        yield
        if text is not None:
            model_card.write(place, text)

    def _rendered(self) -> str:
        """The text of its card; raises ValueError or TypeError for invalid `model_card_data`."""
        return model_card.render(self._card(), self.model_card_data, self._origin())

    def push_to_hub(
        self,
        repo_id: str,
        *,
        token: str | bool | None = None,
        private: bool | None = None,
        safe_serialization: bool = True,
        commit_message: str | None = None,
        commit_description: str | None = None,
        local_model_path: str | os.PathLike[str] | None = None,
        exist_ok: bool | None = None,
        replace_model_card: bool = False,
        train_datasets: Sequence[str] | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        tags: Sequence[str] | None = None,
        **unknown: "Unpack[Refused]",
    ) -> str:
        """Upload what `save_pretrained` writes to a repository of the hub, as one commit.

        The model is saved into a temporary folder first, which is removed in any case. The
        repository is made if there is none.

        Args:
            repo_id: "organisation/name"; a name alone goes to the account of the token.
            token: access token with the right to write; None or True is the stored login.
            private: whether a new repository is private; None: as the organisation has it.
            safe_serialization: True; weights are always written as safetensors.
            commit_message: title of the commit.
            commit_description: text of the commit; of a pull request, by default how to try it.
            local_model_path: upload this folder in place of the model; it is not changed.
            exist_ok: whether the repository may exist. None: as in the library that has the class:
                False for Embedder and CrossEncoder, True for NomicBert and the heads.
            replace_model_card: also upload README.md where the repository has one.
            train_datasets: data sets that are added to `model_card_data`.
            revision: branch to upload to, made if there is none.
            create_pr: open a pull request; the repository may then exist.
            tags: tags that are added to `model_card_data`.
            **unknown: none; an error names the nearest known keyword.

        Returns: URL of the commit, or of the pull request.
        Raises: HubError: no connection, no permission, a malformed repo_id, or a repository that
            exists. ValueError, TypeError: invalid argument; unless it is local_model_path, before
            a request is made. Errors of `save_pretrained`.
        """
        refuse_unknown(unknown, self.push_to_hub)
        kind, data = type(self).__name__, self.model_card_data
        target = hub_upload.Target(
            repo_id,
            token,
            private,
            self._exist_ok if exist_ok is None else exist_ok,
            revision,
            create_pr,
            commit_message or f"Add new {kind} model",
            commit_description or (self._invitation(repo_id) if create_pr else None),
            replace_model_card,
        )
        self._note_for_card(None, train_datasets, safe_serialization)
        data.add_tags(_unspread(tags))
        if local_model_path is not None:
            local = os.fspath(local_model_path)
            return hub_upload.upload(target, lambda _: local)
        with tempfile.TemporaryDirectory(prefix="nomicbert-push-") as made:
            folder = Path(made)
            self.save_pretrained(folder)

            def fill(full_id: str) -> Path:
                data.set_model_id(full_id)
                (folder / model_card.NAME).unlink(missing_ok=True)  # it lacks the full id
                model_card.write(folder, self._rendered())
                return folder

            return hub_upload.upload(target, fill)

    def save_to_hub(
        self,
        repo_id: str | None = None,
        organization: str | None = None,
        private: bool | None = None,
        *,
        repo_name: str | None = None,
        **keywords: "Unpack[PushKeywords]",
    ) -> str:
        """Old name of `push_to_hub`, with a logged warning.

        Args:
            repo_id: as for `push_to_hub`.
            organization: the part of repo_id before the slash.
            private: as for `push_to_hub`.
            repo_name: old name of repo_id.
            **keywords: those of `push_to_hub`.
        """
        # the words and their order are part of the interface: tests of callers compare them
        if repo_name and repo_id is None:
            logger.warning(
                "Providing a `repo_name` keyword argument to `save_to_hub` is deprecated. Please "
                "use `repo_id` instead."
            )
            repo_id = repo_name
        logger.warning(
            "The `save_to_hub` method is deprecated and will be removed in a future version of "
            "SentenceTransformers. Please use `push_to_hub` instead for future model uploads."
        )
        if not repo_id:
            raise TypeError("save_to_hub needs repo_id, as 'organisation/name'")
        if organization:
            old = "Providing an `organization` to `save_to_hub` is deprecated. Please use `repo_id"
            if "/" in repo_id and repo_id.split("/")[0] != organization:
                raise ValueError(f"{old}` instead.")
            repo_id = repo_id if "/" in repo_id else f"{organization}/{repo_id}"
            logger.warning('%s="%s"` instead.', old, repo_id)
        return self.push_to_hub(repo_id, private=private, **keywords)

    def _invitation(self, repo_id: str) -> str:
        """The description of a pull request."""
        model = f'"{repo_id}", revision="refs/pr/NUMBER"'
        code = self._card().snippets[0].code.strip().replace("MODEL", model, 1)
        return (
            f"This pull request adds a model that nomicbert's {type(self).__name__} has saved:\n\n"
            f"```\n{self}\n```\n\nIt can be loaded before it is merged, by the number of this pull "
            f"request:\n\n```python\n{code}\n```\n"
        )


def _unspread(names: Sequence[str] | None) -> list[str]:
    """A list of names; a lone one is not a sequence of characters."""
    return [names] if isinstance(names, str) else [*(names or ())]


class PublishedModule(Publishing, nn.Module):
    """The same for a torch module.

    Attributes:
        loaded_from: set by `from_pretrained`.
    """

    _exist_ok = True
    loaded_from: Origin = Origin()

    def _origin(self) -> Origin:
        return self.loaded_from
