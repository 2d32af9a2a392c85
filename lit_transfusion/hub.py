"""Models on the Hugging Face hub: their names, and downloading their files."""

import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

from lit_transfusion.errors import InputError

NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(?<!\.ckpt)(?<!\.model)(?<!\.json)")  # owner/name, and no path to a file


def download(name: str, files: Sequence[str], **options: Any) -> Path:
    """Download files of a model from the hub, and return their folder in the hub's cache.

    Args:
        name: owner/name.
        files: Names or patterns of the files.
        options: Arguments of `huggingface_hub.snapshot_download`: revision, token, cache_dir, local_files_only, …

    Raises:
        InputError: There is no such model, or it cannot be downloaded.
    """
    try:
        return Path(snapshot_download(name, allow_patterns=list(files), **options))
    except Exception as error:  # errors of the hub, the network or the disk
        reason = textwrap.shorten(f"{type(error).__name__}: {error}", 160)
        raise InputError(
            f"{name} not found: it is not a file or folder on this machine, and no model of this name could be "
            f"downloaded from the Hugging Face hub ({reason}); check the name"
        ) from None
