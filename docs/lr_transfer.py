"""Find the best learning rate at three widths, without and with μP, and write docs/studies/lr_transfer/.

python docs/lr_transfer.py --seeds 2 --parallel 2

Makes a study with one arm for each width, rate and rule, in runs/lr_transfer/, and runs `ablate` on it with the options
of the command line. If started again, it resumes as `ablate` does. Then it writes a plot and a table of the losses.
"""

import csv
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean

import matplotlib.pyplot as plt
import yaml

from lit_transfusion.wording import counted

ROOT = Path(__file__).parents[1]
RUNS, REPORT = Path("runs/lr_transfer"), ROOT / "docs" / "studies" / "lr_transfer"
WIDTHS, RATES, BASE, HEAD = (32, 64, 128), (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2), 32, 32
RULES = {"standard": "one rate for all weights", "mup": f"μP, model.base_dim {BASE}"}
COLUMNS = {"bits_per_byte": "text: bits per byte", "diffusion_loss": "pictures: diffusion loss"}


def arms() -> dict[str, tuple[str, int, float]]:
    """Rule, width and rate of each arm. At the base width both rules are the same."""
    kinds = [(rule, width, rate) for rule in RULES for width in WIDTHS for rate in RATES]
    return {name(*kind): kind for kind in kinds if kind[:2] != ("mup", BASE)}


def name(rule: str, width: int, rate: float) -> str:
    return f"{'standard' if width == BASE else rule}_{width}_{round(rate * 1e4)}"


def config() -> dict:
    return {
        "base": str(ROOT / "configs" / "study.yaml"),
        "trainer": {"default_root_dir": f"{RUNS}/${{arm}}", "max_steps": 600, "val_check_interval": 600},
        "model": {"scheduler": {"class_path": "WarmupCosine", "init_args": {"warmup_steps": 50, "final_lr": 0.0}}},
        "study": {"metrics": ["Perplexity", "DiffusionLoss"]},
        "arms": {
            arm: {
                "model": {
                    "size": {"dim": width, "n_layers": 4, "n_heads": width // HEAD, "multiple_of": 32},
                    "optimizer": {"class_path": "AdamW", "init_args": {"lr": rate}},
                    "base_dim": BASE if rule == "mup" else None,
                }
            }
            for arm, (rule, width, rate) in arms().items()
        },
    }


def losses(results: Path) -> dict[tuple[str, str], list[float]]:
    """The losses of the seeds, by arm and column."""
    found = defaultdict(list)
    with results.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            for column in COLUMNS:
                found[row["arm"], column].append(float(row[column]))
    return found


def draw(found: dict[tuple[str, str], list[float]], path: Path) -> None:
    figure, panels = plt.subplots(
        len(COLUMNS), len(RULES), figsize=(9, 7), sharex=True, sharey="row", layout="constrained"
    )
    for panel, title in zip(panels[0], RULES.values(), strict=True):
        panel.set_title(title, fontsize=10)
    for panel in panels[1]:
        panel.set_xlabel("learning rate")
    for row, (column, label) in zip(panels, COLUMNS.items(), strict=True):
        row[0].set_ylabel(label)
        for panel, rule in zip(row, RULES, strict=True):
            for number, width in enumerate(WIDTHS):
                seeds = [found[name(rule, width, rate), column] for rate in RATES]
                means, color = [mean(values) for values in seeds], plt.get_cmap("viridis")(0.8 - 0.35 * number)
                panel.fill_between(
                    RATES, [min(v) for v in seeds], [max(v) for v in seeds], color=color, alpha=0.2, lw=0
                )
                panel.plot(RATES, means, color=color, marker="o", markersize=3, label=f"width {width}")
                best = min(range(len(RATES)), key=means.__getitem__)
                panel.plot(RATES[best], means[best], color=color, marker="*", markersize=13)
            panel.set_xscale("log", base=2)
            panel.set_xticks(RATES, [f"{rate:g}" for rate in RATES])
            panel.grid(alpha=0.2)
    panels[0][0].legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=110)


def table(found: dict[tuple[str, str], list[float]]) -> str:
    lines = []
    for column, label in COLUMNS.items():
        lines += [
            f"\n## {label[0].upper()}{label[1:]}\n",
            "| rule | width | " + " | ".join(f"{r:g}" for r in RATES) + " |",
        ]
        lines.append("|---" * (len(RATES) + 2) + "|")
        for rule in RULES:
            for width in WIDTHS:
                means = [mean(found[name(rule, width, rate), column]) for rate in RATES]
                cells = [f"**{value:.4g}**" if value == min(means) else f"{value:.4g}" for value in means]
                lines.append(f"| {rule} | {width} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    RUNS.mkdir(parents=True, exist_ok=True)
    study = RUNS / "lr_transfer.yaml"
    study.write_text(yaml.safe_dump(config(), sort_keys=False), encoding="utf-8")
    subprocess.run([sys.executable, "-m", "lit_transfusion", "ablate", "--config", study, *sys.argv[1:]], check=True)
    numbers = losses(RUNS / "report" / "results.csv")
    REPORT.mkdir(parents=True, exist_ok=True)
    draw(numbers, REPORT / "losses.png")
    command = " ".join(["python docs/lr_transfer.py", *sys.argv[1:]])
    seeds = counted(len(next(iter(numbers.values()))), "seed")
    head = (
        f"# Does the best learning rate hold at other widths?\n\n`{command}`: held-out losses after 600 steps, mean "
        f"and range over {seeds}. The best rate of each row is bold, and a star in the plot.\n\n"
        "![losses by learning rate](losses.png)\n"
    )
    (REPORT / "README.md").write_text(head + table(numbers) + "\n", encoding="utf-8")
    print(head + table(numbers))
