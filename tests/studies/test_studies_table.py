"""The table over all studies, from their findings.csv."""

import csv
import importlib.util
from pathlib import Path

import pytest

from lit_transfusion.studies.results import adjusted_by_holm


@pytest.fixture
def table():
    path = Path(__file__).parents[2] / "docs" / "studies_table.py"
    spec = importlib.util.spec_from_file_location("studies_table", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.table


def test_all_findings_of_all_studies_are_one_family(table, tmp_path):
    """In each study alone, p = 0.02 is resolved by Holm's method; beside those of the other study it is not."""
    studies = {"mask": [(0.02, 0.02, False), (0.9, 0.9, False)], "order": [(0.001, 0.002, False), (0.04, 0.04, True)]}
    for name, findings in studies.items():
        (tmp_path / name).mkdir()
        with (tmp_path / name / "findings.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            named = ["finding", "column", "better", "worse", "difference", "low", "high", "p", "holm", "bh", "at_floor"]
            writer.writerow(named)
            for p, holm, at_floor in findings:
                writer.writerow([f"{name} {p}", "cider", "a", "b", -0.5, -0.6, -0.4, p, holm, holm, at_floor])
            if name == "order":
                writer.writerow(["one seed", "cider", "a", "b", 0.5, "", "", "", "", "", False])
    text = table(tmp_path)
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| [")]
    verdicts = {row[1]: (row[-2], row[-1].removesuffix(" |")) for row in rows}
    assert verdicts == {
        "mask 0.02": ("no", "not resolved"),
        "mask 0.9": ("not resolved", "not resolved"),
        "order 0.001": ("no", "no"),
        "order 0.04": ("at the floor", "at the floor"),
        "one seed": ("not resolved", "not resolved"),
    }
    holm = adjusted_by_holm([0.02, 0.9, 0.001, 0.04])
    assert [row[5] for row in rows] == [*(f"{p:.2g}" for p in holm), "–"]
    assert "all 4 findings" in text and "Of 5 findings 2 are resolved alone, 1 with" in text
