"""A study that takes seconds, and a replacement for its commands in tests of other parts."""

import csv
from pathlib import Path
from typing import ClassVar

import lightning
import yaml

from lit_transfusion.evaluation import Metric
from lit_transfusion.evaluation.metric import Unavailable
from lit_transfusion.studies.runner import Job


class OutOfReach(Metric):
    """A metric without a better direction, which cannot be measured here."""

    columns: ClassVar[dict[str, str]] = {"distance": "neither"}

    def __call__(self, subject):
        raise Unavailable("its weights | cannot be had")


class Breaks(lightning.Callback):
    def on_train_start(self, trainer, pl_module):
        raise RuntimeError("it breaks")


TINY = {
    "base": str(Path(__file__).parents[2] / "configs" / "study.yaml"),
    "trainer": {"max_steps": 3, "val_check_interval": 2, "limit_val_batches": 1, "log_every_n_steps": 1},
    "model": {
        "size": {"dim": 16, "n_layers": 1, "n_heads": 1, "multiple_of": 16},
        "patcher": {"class_path": "LinearPatcher", "init_args": {"patch_size": 4, "positions": 4}},
    },
    "data": {
        "source": {"class_path": "Shapes", "init_args": {"num_examples": 20, "num_val_examples": 4}},
        "image_size": 16,
        "sequence_length": 96,
        "vocab_size": 300,
    },
    "study": {
        "table": 5,
        "metrics": [
            "Perplexity",
            {"class_path": "GenEvalShapes", "init_args": {"prompts_per_category": 1}},
        ],
        "num_examples": 3,
        "num_inference_steps": 2,
        "claims": [{"says": "Both ways | is better", "column": "perplexity", "better": "both", "worse": "causal"}],
        "paper": {"causal": {"FID": 61.3}},
    },
    "arms": {"causal": {"model": {"mask": "Causal"}}, "both": {"model": {"mask": "Bidirectional"}}},
}


def write_tiny(path: Path, **changes) -> Path:
    """Write tiny.yaml. Changes of `study` and `trainer` are merged; other sections are replaced."""
    content = dict(TINY)
    for key, value in changes.items():
        content[key] = content[key] | value if key in ("study", "trainer") and isinstance(value, dict) else value
    text = yaml.safe_dump(content, sort_keys=False)
    path.write_text(f"# Who may see\n# whom?\n#\n# More of it.\n{text}", encoding="utf-8")
    return path


def write_metrics(job: Job, version: int, rows: list[dict]) -> Path:
    """Write metrics as Lightning's CSVLogger does, with a version for each start."""
    path = job.folder / "metrics" / f"version_{version}" / "metrics.csv"
    path.parent.mkdir(parents=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)
    return path


# Replaces `python -m lit_transfusion`, which takes seconds to start.
STAND_IN = """
import signal, sys, time
from pathlib import Path
words = sys.argv[1:]
fit = words[0] == "fit"
folder = Path(words[words.index("--trainer.default_root_dir" if fit else "--output") + 1])
with open("calls.txt", "a") as file:
    print(*words, file=file)

def finish():
    if fit:
        (folder / "checkpoints").mkdir(exist_ok=True)
        (folder / "checkpoints" / "last.ckpt").touch()
        (folder / "finished.json").write_text('{"step": 5}')
    else:
        (folder / "evaluation.json").write_text('{"metrics": {"3": {"perplexity": 2.0}}}')

"""
