"""The cost of a study is computed from its arms; invalid arms are errors before training."""

import itertools
import sys
from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console
from tiny_study import TINY

from lit_transfusion import cli
from lit_transfusion.config.lightning import parts_of
from lit_transfusion.errors import InputError
from lit_transfusion.studies.plan import ArmPlan, clock, fit_arguments, plan, table_of


def shown(plans, seeds=3, parallel=2) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(table_of(plans, seeds, parallel))
    return capture.get()


def test_arms_are_counted(make_study):
    study = make_study(arms={"causal": {"model": {"mask": "Causal"}}, "both": {"data": {"batch_size": 3}}})
    first, second = plan(study, ["--trainer.accumulate_grad_batches=2", "--trainer.max_steps=7"], timed=False)
    assert first.parameters == second.parameters > 2 * 280 * 16  # embedding and head, and the net between
    assert 2 * 3 * 4 * 4 * 16 <= first.patcher_parameters < first.parameters / 2
    assert first.max_steps == 7 and first.seconds is None
    assert 2 * 60 < first.tokens <= 2 * 96  # two rows of 96 positions a step, less padding
    assert second.tokens == pytest.approx(3 * first.tokens, rel=0.2)
    assert second.flops == pytest.approx(3 * first.flops, rel=0.2)
    assert 0.25 < first.flops / (6 * first.parameters * first.tokens) < 1  # 6 N a token, but for the embeddings


def test_plan_is_the_config_of_a_run_without_arm_and_folder(make_study):
    (one,) = plan(make_study().only(["both"]), ["--data.batch_size=2"], timed=False)
    config = yaml.safe_load(one.config)
    assert config["data"]["batch_size"] == 2 and "arm" not in config and "config" not in config
    assert config["trainer"]["default_root_dir"] == "FOLDER" and config["seed_everything"] == 0
    assert "both" not in one.config and config["model"]["mask"]["class_path"].endswith("Bidirectional")


@pytest.mark.parametrize("own", [{}, {"seed": 5}])
def test_arms_of_a_seed_share_data_and_noise(make_study, own):
    """Two seeds differ, with any seed in the file."""
    study = make_study(data=TINY["data"] | own)
    drawn = {}
    for arm, seed in itertools.product(study.arms, (0, 1)):
        parts = parts_of(fit_arguments(study, arm, [], seed, Path("FOLDER")))
        batches = list(itertools.islice(parts.datamodule.train_dataloader(), 2))
        drawn[arm, seed] = [batch.tokens for batch in batches], parts.model.seed
    for seed in (0, 1):
        assert all(map(torch.equal, drawn["causal", seed][0], drawn["both", seed][0]))
        assert drawn["causal", seed][1] == drawn["both", seed][1] == seed  # the seed of the noise
    assert not any(map(torch.equal, drawn["causal", 0][0], drawn["causal", 1][0]))


@pytest.mark.parametrize(
    ("arms", "overrides", "texts"),
    [
        ({"a": {"model": {"masks": "Causal"}}, "both": {}}, [], ["arm a", "masks"]),
        ({"a": {"modell": {"mask": "Causal"}}, "both": {}}, [], ["arm a", "modell"]),
        ({"a": {"model": {"mask": "Circular"}}, "both": {}}, [], ["arm a", "Circular", "Bidirectional, Causal"]),
        ({"a": {"data": {"image_size": 18}}, "both": {}}, [], ["arm a", "image_size 18"]),
        ({"both": {}, "a": {}}, [], ["arms both and a", "same config"]),
        ({"both": {}, "a": {"model": {"mask": "Causal"}}}, ["--trainer.nothing=3"], ["--trainer.nothing=3"]),
        ({"both": {}, "a": {"model": {"mask": "Causal"}}}, ["--trainer.max_steps=-1"], ["max_steps -1"]),
    ],
)
def test_invalid_arm_is_an_error(make_study, arms, overrides, texts):
    study = make_study(arms=arms, study={"claims": [], "paper": {}})
    with pytest.raises(InputError) as caught:
        plan(study, overrides, timed=False)
    assert "study.yaml" in str(caught.value) and "\n" not in str(caught.value)
    for text in texts:
        assert text in str(caught.value)


@pytest.mark.parametrize(
    ("asked", "words"),
    [({"num_inference_steps": 5000}, "num_inference_steps 5000"), ({"sampler": "euler"}, "'euler'.*DDPM.*ddim, ddpm")],
)
def test_invalid_sampling_is_an_error_before_training(make_study, asked, words):
    study = make_study(study=asked).only(["both"])
    with pytest.raises(InputError, match=f"arm both.*{words}"):
        plan(study, [], timed=False)


def test_table_has_the_total_time():
    plans = [ArmPlan(arm, "", 2_500_000, 10_000, 1000, 500.0, 2e9, 0.36) for arm in ("a", "b")]
    text = shown(plans)
    for cell in ("2.50M", "0.01M", "1,000", "0.50M", "2.00e+12", "6 min", "2 arms x 3 seeds, 2 at a time", "18 min"):
        assert cell in text
    text = shown([plans[0], plans[1]._replace(seconds=None)])
    assert "–" in text and "at a time" not in text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (99, "99 s"), (119, "2 min"), (5900, "98 min"), (7200, "2.0 h"), (36000, "10.0 h")],
)
def test_clock(seconds, text):
    assert clock(seconds) == text


def test_dry_run_prints_the_plan_and_runs_nothing(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cli.main(["ablate", "--config", str(tiny), "--dry_run", "--arms", "both"])
    printed = " ".join(capsys.readouterr().err.split())
    assert "both" in printed and "causal" not in printed and "1 arm x 3 seeds" in printed  # timed
    assert list(tmp_path.iterdir()) == [tiny]


# Errors are one line, with exit status 2, and leave no files.


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--seeds", "0"], "seeds 0 is invalid: it must be at least 1"),
        (["--parallel", "0"], "parallel 0 is invalid: it must be at least 1"),
        (["--arms", "none"], "has no arm 'none'; it has causal, both"),
        (["--arms"], "--arms is empty"),
        (["--cluster", "pbs"], "'slurm', 'local'"),
        (["--cluster", "slurm"], "srun"),
        (["--nothing", "1"], "--nothing"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_invalid_option_is_an_error(tiny, tmp_path, monkeypatch, capsys, words, text):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))  # a folder without srun
    with pytest.raises(SystemExit) as caught:
        cli.main(["ablate", "--config", str(tiny), *words])
    printed = capsys.readouterr()
    assert caught.value.code == 2 and text in printed.err and printed.err.startswith("error: ")
    assert len(printed.err.splitlines()) == 1 and not printed.out
    assert list(tmp_path.iterdir()) == [tiny]


def test_cluster_needs_submitit(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "submitit", None)  # as if it were not installed
    with pytest.raises(SystemExit):
        cli.main(["ablate", "--config", str(tiny), "--cluster", "local"])
    assert 'pip install -e ".[cluster]"' in capsys.readouterr().err


def test_folder_of_another_study_is_an_error_before_training(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "out" / "both" / "seed_0"
    folder.mkdir(parents=True)
    (folder / "planned.yaml").write_text("seed_everything: 7\n")
    with pytest.raises(SystemExit):
        cli.main(["ablate", "--config", str(tiny), "--output", "out", "--arms", "both"])
    assert "'seed_everything: 7', now 'seed_everything: 0'" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["planned.yaml"]
