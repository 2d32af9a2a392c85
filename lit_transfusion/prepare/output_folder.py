"""The output folder of `prepare`: its lock, the settings of an unfinished one, and the check of a finished one."""

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from lit_transfusion.data.shards import ShardFolder
from lit_transfusion.data.shards.layout import PREPARING
from lit_transfusion.errors import InputError
from lit_transfusion.file_lock import locked
from lit_transfusion.prepare.report import report
from lit_transfusion.whole_file import whole_file

SETTINGS = "settings.json"

log = logging.getLogger(__name__)


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Lock a folder; waits if another process prepares it.

    If that process was killed, its workers end soon. Files that they still write are atomic and equal to the last byte.
    """

    def waiting() -> None:
        log.info("waiting for another process that prepares %s", folder)

    try:
        if folder.is_dir() and not (folder / PREPARING).exists() and any(folder.iterdir()):
            raise InputError(f"--output {folder} contains other files and no shards; give a new folder")
        (folder / PREPARING).mkdir(parents=True, exist_ok=True)
        lock = ExitStack()
        lock.enter_context(locked(folder / PREPARING / "lock", waiting))
    except OSError as error:
        raise InputError(f"--output {folder} cannot be written to: {error.strerror}; give another folder") from error
    with lock:
        yield


def check_or_write_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Save the settings of the shards, or check that existing shards have the same settings."""
    path = folder / PREPARING / SETTINGS
    if not path.exists():
        with whole_file(path) as file:
            file.write(json.dumps(settings).encode())
    check_same_settings(folder, json.loads(path.read_text(encoding="utf-8")), settings)
    for place in (folder, folder / PREPARING):
        for partial in place.glob(".*.partial"):  # left by a killed process
            partial.unlink()


def check_same_settings(folder: Path, before: dict[str, Any], settings: dict[str, Any]) -> None:
    """Check that settings are those of the existing shards. The path of the input may differ, its content may not.

    Raises:
        InputError: The settings or the content of the input differ.
    """
    for key, value in settings.items():
        known = before.get(key)
        if key == "codec":  # the path of its weights may differ
            known, value = (codec and codec["identity"] for codec in (known, value))
        if key == "version" and known != value:
            raise InputError(
                f"--output {folder} was made by another version of prepare ({known}; this is {value}), which holds out "
                "other pictures; give a new folder"
            )
        if key not in ("input", "listing") and known != value:
            raise InputError(
                f"--output {folder} was made with {key} {known}, not {value}; use the former, or give a new folder"
            )
    if before["listing"] != settings["listing"]:
        paths = " ".join(before["input"]["paths"])
        raise InputError(
            f"--output {folder} was made from another input ({paths}), or the input has changed; give a new folder"
        )


def check_finished(folder: Path, settings: dict[str, Any]) -> None:
    """Check that a finished folder has the same settings and that its shards are undamaged."""
    shards = ShardFolder(str(folder))
    check_same_settings(folder, shards.index, settings)
    if damaged := shards.damaged():
        raise InputError(
            f"{folder}: the content of {', '.join(damaged[:10])}{', …' if len(damaged) > 10 else ''} has changed; "
            "copy it again, or remove the folder and prepare again"
        )
    shutil.rmtree(folder / PREPARING, ignore_errors=True)  # left by a process that was killed while removing it
    print(f"{folder} is already finished, and its content is unchanged")
    report(folder, shards.index)
