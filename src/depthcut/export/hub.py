"""A written directory as a repository of the Hugging Face hub: only where asked for, and private where it is new.

The token is the one that `hf auth login` stored, or `HF_TOKEN`; it goes to the hub and nowhere else.
"""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi, get_token, is_offline_mode
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from depthcut.types import InputError

LEFT_BEHIND = ["journal.jsonl", "*.partial", "checkpoints/*"]
"""Files that only a resumed run needs."""

FAILURES: tuple[type[BaseException], ...] = HfHubHTTPError.__bases__
"""A refusal, a hub that cannot be reached, a file that cannot be read: errors of whichever HTTP library the hub's
package is built on, and of the system."""


class PushError(RuntimeError):
    """The model was written to disk, but the upload to the hub failed."""


def check_push(repository: str) -> None:
    """Checks before any work that a directory could be pushed; asks the hub nothing.

    Raises:
        InputError: the name is none that the hub takes, there is no token, or the hub is switched off.
    """
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise InputError(f"{repository!r} is no name of a repository on the hub; write USER/NAME") from error
    if is_offline_mode():
        raise InputError("nothing can be pushed while HF_HUB_OFFLINE is set; unset it, or leave --push-to-hub out")
    if get_token() is None:
        raise InputError("nothing can be pushed without a token; log in with `hf auth login`, or set HF_TOKEN")


def push(folder: Path, repository: str) -> str:
    """Uploads a directory in one commit, and makes the repository where there is none.

    Returns:
        The address of the repository.

    Raises:
        PushError: the hub refused, or could not be reached.
    """
    api = HfApi()
    try:
        address = api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(
            repo_id=address.repo_id,
            folder_path=folder,
            ignore_patterns=LEFT_BEHIND,
            commit_message="Model made shallower with depthcut",
        )
    except FAILURES as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise PushError(
            f"{folder} could not be pushed to {repository}: {reason}; it lies whole in {folder}, and "
            f"`hf upload {repository} {folder}` tries again"
        ) from error
    return str(address)
