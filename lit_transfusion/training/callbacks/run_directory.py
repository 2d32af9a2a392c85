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
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only

from lit_transfusion.data.loader import PackedLoader
from lit_transfusion.training.ema import AverageWeights

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

    def on_load_checkpoint(self, trainer: lightning.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """What is saved need not be saved again before the next step: an error until then, such as of data that have
        changed, would put a place at their beginning into the checkpoint."""
        for keeper in trainer.checkpoint_callbacks:
            if isinstance(keeper, ModelCheckpoint):
                keeper._last_global_step_saved = checkpoint["global_step"]

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: Any, *_: Any) -> None:
        """Write down what was logged before a checkpoint: a run that is killed goes on from there, and would not log it
        again. (Of the last step before it, Lightning logs after the checkpoint.)"""
        keeper = trainer.checkpoint_callback
        if isinstance(keeper, ModelCheckpoint) and keeper._last_global_step_saved == trainer.global_step:
            for logger in trainer.loggers:
                logger.save()

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, *_: Any) -> None:
        """Keep the last step: where it is no multiple of the interval, last.ckpt would stay at an earlier one. (A
        checkpoint that is judged by what it monitors waits for the validation.)"""
        keeper = trainer.checkpoint_callback
        last = trainer.global_step == trainer.max_steps
        if last and isinstance(keeper, ModelCheckpoint) and keeper.monitor is None:
            for callback in trainer.callbacks:
                if isinstance(callback, AverageWeights):  # whose turn is after this one's, and before a checkpoint's
                    callback.on_train_batch_end(trainer, pl_module)
            candidates = keeper._monitor_candidates(trainer)
            keeper._save_topk_checkpoint(trainer, candidates)
            keeper._save_last_checkpoint(trainer, candidates)

    def on_exception(self, trainer: lightning.Trainer, pl_module: Any, exception: BaseException) -> None:
        """A batch that Ctrl-C interrupts is learned after the run is continued. Checkpoints are written after this."""
        for logger in trainer.loggers:
            logger.save()  # what it has not written yet
        batches = trainer.fit_loop.epoch_loop.batch_progress.current
        if batches.ready > batches.processed and isinstance(trainer.train_dataloader, PackedLoader):
            trainer.train_dataloader.give_back()

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
