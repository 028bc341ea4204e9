"""Downloads from the Hugging Face hub, without code and pickles; and where one fails, what the user can do."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage] -- the client's own, of whichever HTTP library it is
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from sa2va.zoo import did_you_mean

#: What the tokenizer, the processor and the configuration of a checkpoint need.
TEXT_PATTERNS = ("*.json", "*.txt", "*.model", "*.jinja")
#: What a whole checkpoint needs; remote code and pickles are left on the hub.
DOWNLOAD_PATTERNS = ("*.safetensors", *TEXT_PATTERNS)
HUB_OPTIONS = ("revision", "cache_dir", "token", "local_files_only", "force_download")


def is_hub_id(source: str) -> bool:
    """Whether a string has the form ``owner/name``."""
    return source.count("/") == 1 and not source.startswith((".", "/", "~"))


def resolve_folder(source: str | Path, patterns: Sequence[str] = DOWNLOAD_PATTERNS, **hub_kwargs: Any) -> Path:
    """The local folder of a checkpoint; a hub id is downloaded (safetensors, configs and tokenizer files only).

    Args:
        patterns: which files are needed.

    Raises:
        ValueError: neither a folder nor something that looks like a hub id, or the hub does not give it.
    """
    folder = Path(source)
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise ValueError(f"expected a checkpoint folder or a hub id, got the file {folder}; pass its folder")
    if not is_hub_id(str(source)):
        raise ValueError(
            f"no such checkpoint folder: {source} (and it is not a hub id of the form 'owner/name')"
            f"{did_you_mean(str(source))}"
        )
    return download(str(source), patterns, **hub_kwargs)


def download(hub_id: str, patterns: Sequence[str] = DOWNLOAD_PATTERNS, **options: Any) -> Path:
    """Download a repository's files unless they are cached. Returns the folder in the cache.

    Args:
        options: those of [`HUB_OPTIONS`]; others are left out.

    Raises:
        ValueError: the hub cannot be reached, or does not give the files; the message names the id and the cure.
    """
    known = {key: value for key, value in options.items() if key in HUB_OPTIONS}
    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(patterns), **known))
    except HFValidationError as error:
        raise ValueError(f"{hub_id} is neither a folder nor a possible hub id{did_you_mean(hub_id)}") from error
    except GatedRepoError as error:
        raise ValueError(
            f"{hub_id} is gated: accept its terms on its page on the hub, then log in with `hf auth login` "
            "(or set HF_TOKEN, or pass token=)"
        ) from error
    except RepositoryNotFoundError as error:
        raise ValueError(
            f"the hub has no model {hub_id}{did_you_mean(hub_id)}. If it is a private one, log in with `hf auth login` "
            "(or set HF_TOKEN, or pass token=)"
        ) from error
    except RevisionNotFoundError as error:
        raise ValueError(f"{hub_id} has no revision {known.get('revision')!r}; leave it out for the newest") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise ValueError(_unreachable(hub_id, known)) from error
    except HfHubHTTPError as error:
        raise ValueError(f"the hub did not give {hub_id}: {_first_line(error)}; try again later") from error
    except HTTPError as error:  # the connection broke off
        raise ValueError(f"{_unreachable(hub_id, known)} ({_first_line(error)})") from error


def _unreachable(hub_id: str, options: dict[str, Any]) -> str:
    if options.get("local_files_only"):
        reason, cure = "local_files_only forbids to download it", "leave local_files_only out"
    elif constants.HF_HUB_OFFLINE:
        name = next((name for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if os.environ.get(name)), "")
        reason, cure = f"{name or 'HF_HUB_OFFLINE'} forbids to download it", f"unset {name or 'HF_HUB_OFFLINE'}"
    else:
        reason, cure = "the hub cannot be reached", "check the network"
    return (
        f"{hub_id} is not, or not wholly, on this machine, and {reason}{did_you_mean(hub_id)}. Either {cure}; or run "
        f"`hf download {hub_id} --local-dir FOLDER` where there is a network, bring the folder here, and name it in "
        "place of the id (--model FOLDER)"
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
