"""A small scaling comparison with the real commands, from its file to its report."""

import csv
import os
from pathlib import Path

import pytest
import torch
from tiny_study import TINY, write_tiny

from lit_transfusion import cli

SCHEDULE = {"class_path": "WarmupStableDecay", "init_args": {"warmup_steps": 2, "total_steps": "${trainer.max_steps}"}}


@pytest.mark.slow
def test_runs_of_a_comparison_have_the_weights_of_runs_trained_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[2]), str(Path(__file__).parent)]))
    scaling = {"sizes": {"small": {"model": {"size": {"dim": 32}}}}, "steps": [5, 10], "columns": ["perplexity"]}
    write_tiny(
        tmp_path / "tiny.yaml",
        model=TINY["model"] | {"scheduler": SCHEDULE},
        study={"metrics": ["Perplexity"], "scaling": scaling, "claims": [], "paper": {}},
        arms={"both": {"model": {"mask": "Bidirectional"}}},
    )
    cli.main(["scaling", "--config", "tiny.yaml", "--seeds", "1", "--output", "out"])
    assert "2 of 2 runs" in (tmp_path / "out" / "report" / "README.md").read_text()
    points = list(csv.DictReader((tmp_path / "out" / "report" / "points.csv").open()))
    assert [float(point["perplexity"]) > 1 for point in points] == [True, True]
    assert float(points[1]["tokens"]) == 2 * float(points[0]["tokens"])
    for steps in (5, 10):
        words = ["--config", "tiny.yaml", "--arm", "both", "--model.size.dim=32", f"--trainer.max_steps={steps}"]
        cli.main(["fit", *words, "--trainer.default_root_dir", f"alone_{steps}"])
        alone, branch = (
            torch.load(tmp_path / folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
            for folder in (f"alone_{steps}", f"out/both/small/seed_0/steps_{steps}")
        )
        assert all(torch.equal(alone[name], branch[name]) for name in alone)
        assert alone.keys() == branch.keys()
