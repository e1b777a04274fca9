"""Folders of exits on the Hugging Face hub."""

from __future__ import annotations

import os
import re
from pathlib import Path

from exitkit.errors import CheckpointError, expect
from exitkit.persistence.settings import CALIBRATION, CONFIG
from exitkit.persistence.weights import BACKBONE, HEADS

_FETCHED = [
    *(CONFIG, CALIBRATION, HEADS, BACKBONE),
    *(f"*/{n}" for n in (CONFIG, CALIBRATION, HEADS, BACKBONE)),
]


def local_folder(path: str | Path, revision: str | None = None) -> Path:
    """The folder of saved exits: where it is, or fetched from the hub.

    Arguments:
        path: A folder, or the name of a repository, owner/name.
        revision: Branch, tag or commit of the repository; its main branch if None.

    Returns:
        The folder.

    Raises:
        ConfigError: If it is no path.
        CheckpointError: If there is neither such a folder nor such a repository.
    """
    remedy = "Pass what model.save_pretrained(path) has written, or the name of a repository."
    expect("load", path, (str, os.PathLike), "a path", remedy)
    local = Path(path)
    if local.exists() or not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", str(path)):
        return local
    import huggingface_hub as hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        found = hub.snapshot_download(str(path), revision=revision, allow_patterns=_FETCHED)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        at = f" at {revision}" if revision else ""
        raise CheckpointError(
            f"{path} is no folder here, and could not be fetched from the hub{at}: {_told(error)}. Pass a "
            "folder written by model.save_pretrained(path), or the name of a repository that "
            "model.push_to_hub has written."
        ) from error
    return Path(found)


def upload(
    folder: Path,
    repo_id: str,
    *,
    private: bool | None,
    token: str | None,
    revision: str | None,
    commit_message: str,
) -> str:
    """Puts a folder of exits into a repository, which is made if it is not there.

    Arguments:
        folder: The folder.
        repo_id: Name of the repository, owner/name.
        private: Whether a new repository is private; as the owner's settings say if None.
        token: Of the hub; the one that was logged in with if None.
        revision: Branch to commit to; the main branch if None.
        commit_message: What the commit says.

    Returns:
        Address of the commit.

    Raises:
        CheckpointError: If the hub refuses.
    """
    import huggingface_hub as hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    api = hub.HfApi(token=token)
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        made = api.upload_folder(
            repo_id=repo_id,
            folder_path=os.fspath(folder),
            revision=revision,
            commit_message=commit_message,
        )
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise CheckpointError(
            f"push_to_hub: {repo_id} was not written: {_told(error)}. Log in with "
            "`hf auth login` or pass token=, and name a repository of yours, owner/name."
        ) from error
    return str(made.commit_url)


def _told(error: Exception) -> str:
    """What went wrong, in one line."""
    lines = str(error).strip().splitlines() or ["no reason given"]
    return f"{type(error).__name__}: {lines[0].rstrip('.')}"
