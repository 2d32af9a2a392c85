"""The table of docs/studies/README.md, from the findings of the reports beside it.

python docs/studies_table.py > docs/studies/README.md
"""

import csv
from pathlib import Path

STUDIES = Path(__file__).parent / "studies"
ORDER = {"mask": 5, "patch_size": 6, "patcher": 7, "noise_limit": 8, "order": None, "image_loss_weight": None}

print("# The paper's ablations, at the size of two CPU cores\n")
print(
    "Each study is one command (`python -m lit_transfusion ablate --config configs/ablate_NAME.yaml --seeds 3 "
    "--parallel 2`) on drawn shapes of 24 x 24 pixels, with nets of some million parameters that see at most a million "
    "positions, where the paper's see half a trillion. So this says which findings show that early and that small, not "
    "which are true. Commit, hardware and wall time are at the head of each report.\n"
)
print(
    "A difference is above zero where the finding holds; in brackets is its 95 % t interval over three seeds. It is "
    '"not resolved" where that holds zero; of twenty differences that are none, one would still seem resolved. '
    "`diffusion_loss` is on noise that is the same for all arms and seeds, and so differs least between seeds; "
    "`kid_efficientnet_lite0` compares 100 drawn pictures with 100 held-out ones. Findings are the paper's, but for "
    "those of order and image_loss_weight, of which it reports nothing.\n"
)
print("| study | finding | measured by | difference | holds here? |\n|---|---|---|---|---|")
for name, table in ORDER.items():
    path = STUDIES / name / "findings.csv"
    if not path.is_file():
        continue
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            study = f"[{name}]({name}/README.md)" + (f", Table {table}" if table else "")
            difference, low, high = (float(row[key]) for key in ("difference", "low", "high"))
            print(
                f"| {study} | {row['finding']} | `{row['column']}`, {row['better']} over {row['worse']} "
                f"| {difference:+.3g} [{low:+.3g}, {high:+.3g}] | {row['verdict']} |"
            )
