"""Upload a folder to a repository of the hub, as one commit. `hub` is the way back.

Where in the flow: `publishing` has saved the model into the folder before a request is made.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nomicbert.errors import HubError
from nomicbert.loading.hub_names import check_token, shown
from nomicbert.loading.model_card import NAME

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_log = logging.getLogger(__name__)

# Of errors after a repository was made.
MADE = " (The repository was made and is empty: pass exist_ok=True to upload to it.)"


@dataclass(frozen=True)
class Target:
    """Where to upload to.

    Attributes:
        repo_id: "organisation/name", or the name alone for the account of the token.
        token: access token; None is the stored login.
        private: whether a new repository is private; None: as the organisation has it.
        exist_ok: whether the repository may exist.
        revision: branch, made if there is none; None is "main".
        create_pr: open a pull request instead.
        message: of the commit.
        description: of the commit.
        replace_card: whether to upload a card where the repository has one.
    """

    repo_id: str
    token: str | bool | None
    private: bool | None
    exist_ok: bool
    revision: str | None
    create_pr: bool
    message: str
    description: str | None
    replace_card: bool

    def __post_init__(self) -> None:
        """Refuse what no hub would take, before anything is saved or sent.

        Raises: TypeError, ValueError, HubError: the message names the argument.
        """
        if not isinstance(self.repo_id, str):
            raise TypeError(f"repo_id must be a string, not {self.repo_id!r:.80}")
        check_token(self.token)
        if self.create_pr and self.revision not in (None, "main"):
            raise ValueError(
                f"create_pr=True is for the branch main, not for revision={self.revision!r}: leave "
                "one of the two out"
            )
        from huggingface_hub.errors import HFValidationError

        # as in `hub`: names that huggingface_hub.utils offers, but does not declare
        from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

        try:
            validate_repo_id(self.repo_id)
        except HFValidationError as error:
            raise HubError(
                f"repo_id {shown(self.repo_id)} is not the id of a repository: give "
                "'organisation/name', of letters, digits, '-', '_' and '.'"
            ) from error


def upload(target: Target, fill: Callable[[str], Path | str]) -> str:
    """Make the repository if there is none, and upload a folder in one commit.

    Args:
        target: where to.
        fill: gives the folder, from the full id of the repository, when that exists.

    Returns: URL of the commit, or of the pull request.
    Raises: HubError: not reachable, not permitted, or a repository that exists. ValueError: `fill`
        gives no folder. The message says if an empty repository was made.
    """
    from huggingface_hub import HfApi

    with _explained(target):
        api = HfApi(token=target.token)
        may_exist = target.exist_ok or target.create_pr
        made = api.create_repo(repo_id=target.repo_id, private=target.private, exist_ok=may_exist)
    repo_id = made.repo_id
    left = "" if may_exist else MADE
    with _explained(target, left):
        if target.revision is not None and not target.revision.startswith("refs/"):
            api.create_branch(repo_id=repo_id, branch=target.revision, exist_ok=True)
        carded = may_exist and not target.replace_card and _has_card(api, repo_id, target.revision)
    folder = fill(repo_id)
    with _explained(target, left), _needing(folder, left):
        done = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message=target.message,
            commit_description=target.description,
            create_pr=target.create_pr,
            revision=target.revision,
            ignore_patterns=NAME if carded else None,
        )
    url = done.pr_url if target.create_pr else done.commit_url
    return str(url)


def _has_card(api: HfApi, repo_id: str, revision: str | None) -> bool:
    """Whether a repository has a card; one that cannot be asked is taken to have one."""
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

    try:
        return api.file_exists(repo_id, NAME, revision=revision)
    except (httpx.HTTPError, OSError) as error:
        _log.info(
            "%s could not be asked for its %s (%s): a card that may be there is kept, and none is "
            "uploaded",
            repo_id,
            NAME,
            type(error).__name__,
        )
        return True


@contextmanager
def _needing(folder: Path | str, left: str) -> Iterator[None]:
    """Explain what huggingface_hub refuses: a folder that is none, or metadata of its card."""
    try:
        yield
    except ValueError as error:
        if Path(folder).is_dir():
            raise HubError(f"the hub refuses the upload: {error}{left}") from error
        # not checked before the first request, as in sentence-transformers
        raise ValueError(
            f"local_model_path {str(folder)!r} is not a folder: nothing was uploaded. Give one "
            f"that holds a model, or leave it out to upload this one.{left}"
        ) from error


@contextmanager
def _explained(target: Target, left: str = "") -> Iterator[None]:
    """Turn errors of huggingface_hub into ours, and say what they leave."""
    from huggingface_hub import constants
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

    try:
        yield
    except HubError:  # also an OSError, which a clause below would wrap again
        raise
    except httpx.TransportError as error:
        raise HubError(
            f"No connection to {constants.ENDPOINT} ({error}): {shown(target.repo_id)} was not "
            f"uploaded. Check the network, or save with save_pretrained and upload later.{left}"
        ) from None  # the traceback would be pages of HTTP client internals
    except (httpx.HTTPError, OSError) as error:
        raise HubError(_explain(error, target) + left) from error


def _explain(error: Exception, target: Target) -> str:
    """One sentence on why a request failed and what to do."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
    )

    where, name = constants.ENDPOINT, shown(target.repo_id)
    if isinstance(error, OfflineModeIsEnabled):
        return f"HF_HUB_OFFLINE forbids requests: unset it to upload {name}."
    if isinstance(error, LocalTokenNotFoundError):
        return "token=True asks for the stored login, and there is none: log in, or pass the token."
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if status in (401, 403, 404):
        return (
            f"{where} does not let this account write to {name}: pass a token with write access "
            "(or log in), and check the organisation's name."
        )
    if status == 409 and not target.exist_ok:
        return f"{name} exists at {where}: pass exist_ok=True to add a commit to it."
    if status is not None:
        return f"{where} answered {status} to the upload of {name}: {error}"
    return f"{name} cannot be uploaded to {where}: {error}"
