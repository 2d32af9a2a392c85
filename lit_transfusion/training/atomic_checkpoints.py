"""Atomic writing of checkpoint files."""

import io
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from lit_transfusion.whole_file import whole_file


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint to a file beside the final path, and then renames it.

    Lightning writes to the folder for temporary files and copies the result, so that a full disk or SIGKILL can leave
    an incomplete checkpoint.

    Raises:
        InputError: The file cannot be written. No part of it is left.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        if "://" in str(path):  # a remote path
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        for partial in path.parent.glob(".*.ckpt.*.partial"):  # left by a process that was killed
            partial.unlink()
        content = io.BytesIO()
        torch.save(checkpoint, content)
        with whole_file(path) as file:
            file.write(content.getbuffer())
