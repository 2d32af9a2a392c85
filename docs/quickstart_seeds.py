"""Train the quickstart with five seeds and write docs/quickstart_seeds.md: each seed, the mean and the range.

python docs/quickstart_seeds.py

Trains seeds 0 to 4 into runs/quickstart_seeds/SEED and scores each with `score_shapes --num_samples 216`. If started
again, it skips trained seeds, resumes a stopped one, and repeats the scoring. Options on the command line, such as
`--trainer.devices 1`, are passed to `fit`.
"""

import json
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
RUNS, TABLE = Path("runs/quickstart_seeds"), ROOT / "docs" / "quickstart_seeds.md"
SEEDS, SAMPLES = range(5), 216
ROWS = ("drawn pictures", "written captions")  # rows of the table that `score_shapes` prints
MEASURES = ("colour", "shape", "both")
SHARE = r"\D+?([\d.]+) %"


def lit_transfusion(log: Path, *words: str) -> str:
    """Run a command, append its output to the log, and return its standard output."""
    with log.open("a", encoding="utf-8") as file:
        command = [sys.executable, "-m", "lit_transfusion", *words]
        environment = os.environ | {"COLUMNS": "120"}
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=file, text=True, env=environment)
        file.write(done.stdout)
    if done.returncode:
        sys.exit(f"`{' '.join(words)}` failed with exit status {done.returncode}; see {log}")
    return done.stdout


def train(seed: int, options: list[str]) -> None:
    folder = RUNS / str(seed)
    if (folder / "finished.json").exists():
        return
    resume = []
    if any(folder.glob("checkpoints/*.ckpt")):
        resume = ["--ckpt_path", "last"]
        (folder / "resumed").touch()  # its finished.json has only the time of the last start
    print(f"seed {seed}: training, see {RUNS / f'{seed}.log'}", file=sys.stderr)
    config = ["--config", str(ROOT / "configs" / "quickstart.yaml"), "--trainer.default_root_dir", str(folder)]
    lit_transfusion(RUNS / f"{seed}.log", "fit", *config, "--seed_everything", str(seed), *options, *resume)


def score(seed: int) -> dict[str, float]:
    """The scores: column → per cent, or minutes."""
    folder = RUNS / str(seed)
    print(f"seed {seed}: scoring", file=sys.stderr)
    checkpoint = ["--ckpt", str(folder / "checkpoints" / "last.ckpt"), "--num_samples", str(SAMPLES)]
    output = lit_transfusion(RUNS / f"{seed}.log", "score_shapes", *checkpoint)
    found = {}
    for row in ROWS:
        shares = re.search(row + SHARE * len(MEASURES), output)
        if not shares:
            sys.exit(f"score_shapes printed no row {row!r} with {', '.join(MEASURES)}: see {RUNS / f'{seed}.log'}")
        found |= {f"{row}, {name}": float(share) for name, share in zip(MEASURES, shares.groups(), strict=True)}
    finished = json.loads((folder / "finished.json").read_text())
    found["minutes"] = float("nan") if (folder / "resumed").exists() else finished.get("seconds", float("nan")) / 60
    return found


def table(results: dict[int, dict[str, float]]) -> str:
    columns = list(results[0])
    command = " ".join(["python docs/quickstart_seeds.py", *sys.argv[1:]])
    lines = [
        "# The quickstart with five seeds\n",
        f"`{command}`: `configs/quickstart.yaml` with `--seed_everything 0` to `{SEEDS[-1]}`, each scored with "
        f"`score_shapes --num_samples {SAMPLES}`. In per cent of {SAMPLES} held-out prompts and pictures; "
        f"minutes of training on {os.cpu_count()} CPU cores with PyTorch {torch.__version__}.\n",
        f"| seed | {' | '.join(columns)} |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for seed, found in results.items():
        lines.append(f"| {seed} | {' | '.join(shown(found[name], name) for name in columns)} |")
    of = {
        name: [x for found in results.values() if (x := found[name]) == x] for name in columns
    }  # without resumed seeds
    means = (shown(statistics.mean(of[name]), name, 1) if of[name] else "–" for name in columns)
    ranges = (f"{shown(min(x), name)}–{shown(max(x), name)}" if (x := of[name]) else "–" for name in columns)
    return "\n".join([*lines, f"| **mean** | {' | '.join(means)} |", f"| range | {' | '.join(ranges)} |"]) + "\n"


def shown(value: float, name: str, digits: int = 0) -> str:
    return "resumed" if value != value else f"{value:.1f}" if name == "minutes" else f"{value:.{digits}f}"


if __name__ == "__main__":
    RUNS.mkdir(parents=True, exist_ok=True)
    for number in SEEDS:
        train(number, sys.argv[1:])
    text = table({number: score(number) for number in SEEDS})
    TABLE.write_text(text, encoding="utf-8")
    print(text)
