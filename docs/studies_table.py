"""Print docs/studies/README.md: a table of the findings of all reports in that folder.

python docs/studies_table.py > docs/studies/README.md
"""

import csv
from pathlib import Path

from lit_transfusion.studies.results import adjusted_by_bh, adjusted_by_holm

STUDIES = Path(__file__).parent / "studies"
ORDER = {  # the table of the paper that a study repeats
    "image_tokens": 3,
    "text_only": 4,
    "mask": 5,
    "patch_size": 6,
    "patcher": 7,
    "noise_limit": 8,
    "order": None,
    "image_loss_weight": None,
}

INTRODUCTION = """\
# The paper's ablations, at the size of two CPU cores

Each study is one command (`python -m lit_transfusion ablate --config configs/ablate_NAME.yaml --seeds 3 --parallel \
2`) on drawn shapes of 24 x 24 pixels (text_only: with WordNet's texts), with nets of some million parameters that see \
at most a million positions, where the paper's see half a trillion. So this says which findings show that early and \
that small, not which are true. Commit, hardware and wall time are at the head of each report.

A difference is above zero where the finding holds; in brackets is its 95 % interval (paired t test over three seeds; \
for scores that are counts of pictures also over pictures, see the reports). *Alone* is the verdict if the finding \
were the only one: "yes" or "no" if the interval excludes zero. **Holds here?** is the verdict with p adjusted by \
Holm's method for all {tested} findings of this table, so that the chance of one or more false verdicts in it is at \
most 5 %; BH is p adjusted by Benjamini and Hochberg's method, of which one in twenty below 0.05 is expected to be \
false. "At the floor": neither arm is above what is reached without a model. The reports adjust for their \
own findings only.

Of {total} findings {alone} are resolved alone, {holm} with Holm's adjustment and {bh} with Benjamini and Hochberg's; \
{at_floor} are at the floor.

`diffusion_loss` is on noise that is the same for all arms and seeds, and so differs least between seeds; \
`kid_efficientnet_lite0` compares 100 drawn pictures with 100 held-out ones. [Baselines](../baselines.md) explains \
image_tokens and text_only. Findings are the paper's, but for those of order and image_loss_weight, of which it \
reports nothing.

| study | finding | measured by | difference | p | Holm | BH | alone | holds here? |
|---|---|---|---|---|---|---|---|---|"""

EARLIER = """

Not in the table, because their reports are of version 0.1 and not yet made again: {}. Since then the objective of a \
step, the positions of U-Net arms, the scorer of shapes, the choices of `RankedCaptions`, what is held out, and the \
verdicts have changed; see [LOG](../LOG.md), 2026-11-27."""


def table(studies: Path) -> str:
    """The text of the README, from the findings.csv of each study in a folder."""
    rows, earlier = [], []
    for name in ORDER:
        path = studies / name / "findings.csv"
        if path.is_file():
            with path.open(encoding="utf-8", newline="") as file:
                found = [{"study": name, **row} for row in csv.DictReader(file)]
            if found and "p" not in found[0]:
                earlier.append(f"[{name}]({name}/README.md)")
            else:
                rows += found
    tested = [row for row in rows if row["p"]]
    p_values = [float(row["p"]) for row in tested]
    for row, holm, bh in zip(tested, adjusted_by_holm(p_values), adjusted_by_bh(p_values), strict=True):
        row |= {"holm": holm, "bh": bh}  # adjusted for all studies; findings.csv has them for one study
    counts = {
        "total": len(rows),
        "tested": len(tested),
        "alone": sum(verdict(row, "p") in ("yes", "no") for row in rows),
        "holm": sum(verdict(row, "holm") in ("yes", "no") for row in rows),
        "bh": sum(verdict(row, "bh") in ("yes", "no") for row in rows),
        "at_floor": sum(row["at_floor"] == "True" for row in rows),
    }
    note = EARLIER.format(", ".join(earlier)) if earlier else ""
    return "\n".join([INTRODUCTION.format(**counts), *map(line, rows)]) + note


def verdict(row: dict, key: str) -> str:
    """The verdict by p ("p"), or by adjusted p ("holm", "bh")."""
    if row["at_floor"] == "True":
        return "at the floor"
    if not row[key] or float(row[key]) >= 0.05:
        return "not resolved"
    return "yes" if float(row["difference"]) > 0 else "no"


def line(row: dict) -> str:
    number = ORDER[row["study"]]
    study = f"[{row['study']}]({row['study']}/README.md)" + (f", Table {number}" if number else "")
    interval = f" [{float(row['low']):+.3g}, {float(row['high']):+.3g}]" if row["low"] else ""
    p_values = (f"{float(row[key]):.2g}" if row[key] else "–" for key in ("p", "holm", "bh"))
    cells = [
        study,
        row["finding"].replace("|", "\\|"),
        f"`{row['column']}`, {row['better']} over {row['worse']}",
        f"{float(row['difference']):+.3g}{interval}",
        *p_values,
        verdict(row, "p"),
        verdict(row, "holm"),
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    print(table(STUDIES))
