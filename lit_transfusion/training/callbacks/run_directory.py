"""The callback that writes the run directory, and prints a summary at the end of a run."""

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

from lit_transfusion import run_folder
from lit_transfusion.allowed_imports import foreign_modules

log = logging.getLogger(__name__)


class RunDirectory(lightning.Callback):
    """Saves the tokenizer, writes finished.json after the last step, and prints where the results are.

    It also prints commands for the next step.
    """

    def __init__(self) -> None:
        self.began: float | None = None

    @rank_zero_only
    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        pl_module.tokenizer.save(folder)
        (folder / run_folder.FINISHED).unlink(missing_ok=True)  # from an earlier run with fewer steps
        self.began = time.monotonic()
        net = pl_module.net
        millions = {name: sum(p.numel() for p in part.parameters()) / 1e6 for name, part in net.named_children()}
        parts = ", ".join(f"{name} {count:.2f}M" for name, count in millions.items())
        log.info("%.2fM parameters: %s", sum(millions.values()), parts)
        log.info("the run is kept in %s", folder)

    @rank_zero_only
    def on_fit_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        folder = Path(trainer.default_root_dir)
        if self.began is None:
            finish_again(folder, trainer)
            return
        done = {"step": trainer.global_step, "seconds": round(time.monotonic() - self.began, 1)}
        run_folder.write_text(folder / run_folder.FINISHED, json.dumps(done) + "\n")
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
            own = "".join(f" --import_module {name}" for name in foreign_modules(pl_module.pipeline.describe()))
            say(f"  python -m lit_transfusion generate --ckpt {checkpoint} {task} --output out.png{own}")


def finish_again(folder: Path, trainer: lightning.Trainer) -> None:
    """Report that the run has no steps left, and write finished.json if it is missing.

    It is missing if the run was killed after its last checkpoint.
    """
    step = trainer.global_step
    if not 0 <= trainer.max_steps <= step:
        return
    if run_folder.read_json(folder / run_folder.FINISHED).get("step") != step:
        run_folder.write_text(folder / run_folder.FINISHED, json.dumps({"step": step}) + "\n")
    log.info(
        "the run in %s is finished: %d steps; to train more steps, raise --trainer.max_steps %d",
        folder,
        step,
        trainer.max_steps,
    )
