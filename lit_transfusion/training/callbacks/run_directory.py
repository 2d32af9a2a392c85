"""Where a run leaves things, and what is said of it at its beginning and its end."""

import json
import logging
import os
import shlex
import time
from pathlib import Path
from typing import Any

import lightning
import rich
from lightning.pytorch.utilities import rank_zero_only

log = logging.getLogger(__name__)


class RunDirectory(lightning.Callback):
    """Keeps the tokenizer with the run, writes finished.json when all its steps are done, and says at the end where
    everything is and what to do next."""

    @rank_zero_only
    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokenizer.model").write_bytes(pl_module.tokenizer.model)
        (folder / "finished.json").unlink(missing_ok=True)  # of an earlier start, with fewer steps
        self.began = time.monotonic()
        net = pl_module.net
        millions = {name: sum(p.numel() for p in part.parameters()) / 1e6 for name, part in net.named_children()}
        parts = ", ".join(f"{name} {count:.2f}M" for name, count in millions.items())
        log.info("%.2fM parameters: %s", sum(millions.values()), parts)
        log.info("the run is kept in %s", folder)

    @rank_zero_only
    def on_fit_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        folder = Path(trainer.default_root_dir)
        done = {"step": trainer.global_step, "seconds": round(time.monotonic() - self.began, 1)}
        (folder / "finished.json").write_text(json.dumps(done) + "\n", encoding="utf-8")
        last = trainer.checkpoint_callback.last_model_path if trainer.checkpoint_callback else ""
        checkpoint = os.path.relpath(last) if last else ""
        grids = sorted((folder / "samples").glob("samples_*.png"))
        source = trainer.datamodule.source.pictures.split("train")
        text = shlex.quote(" ".join(source.captions()[0].split()[:20]))
        options = "--prompt {} --interleave", "--prompt {}", "--edit PICTURE --instruction {}"
        task = options[source.images_per_example].format(text)

        def say(text: str) -> None:
            rich.get_console().print(text, soft_wrap=True, highlight=False, markup=False)

        rows = {
            "checkpoint": checkpoint,
            "logs": folder,
            "pictures": grids[-1] if grids else None,
        }
        say(f"\nStep {trainer.global_step} is done.")
        for name, value in rows.items():
            if value:
                say(f"  {name:<11}{value}")
        if checkpoint:
            say("Next:")
            say(f"  tensorboard --logdir {folder}")
            say(f"  python -m lit_transfusion generate --ckpt {checkpoint} {task} --output out.png")
