"""The runs of a scaling comparison, their costs, and the report, whose fits are tested in test_scaling_laws.py."""

import csv
import json

import pytest
import yaml
from rich.console import Console
from tiny_study import TINY, write_tiny

from lit_transfusion import cli
from lit_transfusion.errors import InputError
from lit_transfusion.studies.plan import ArmPlan
from lit_transfusion.studies.report import Circumstances
from lit_transfusion.studies.runner import Outcome
from lit_transfusion.studies.scaling.grid import cell_of, cells_of, make_runs, options_of, table_of
from lit_transfusion.studies.scaling.report import write_report

SCHEDULE = {"class_path": "WarmupStableDecay", "init_args": {"warmup_steps": 2, "total_steps": "${trainer.max_steps}"}}
SCALING = {
    "sizes": {"small": {}, "large": {"model": {"size": {"dim": 32, "n_layers": 2}}}},
    "steps": [10, 20, 40],
    "columns": ["perplexity", "geneval"],
    "baseline": "causal",
    "challenger": "both",
    "paper": {"perplexity": 0.489},
}


@pytest.fixture
def make_scaling(make_study):
    def make_scaling(**changes):
        scaling = {key: value for key, value in (SCALING | changes).items() if value is not None}
        return make_study(model=TINY["model"] | {"scheduler": SCHEDULE}, study={"scaling": scaling})

    return make_scaling


def plan_of(width, scheduler="lit_transfusion.training.optim.WarmupStableDecay", **schedule):
    """A plan without building a net."""
    schedule = {"warmup_steps": 2, "total_steps": 1500, "decay_share": 0.2} | schedule
    config = yaml.safe_dump({"width": width, "model": {"scheduler": {"class_path": scheduler, "init_args": schedule}}})
    return ArmPlan("both", config, 1000 * width, 0, 1500, 80.0, 4e5 * width, None, 302 * width)


def cells_in(study):
    """The cells of a study, without building nets."""
    widths = {size: 16 * 2**i for i, size in enumerate(study.asked.scaling.sizes)}
    return [
        cell_of(study, study.asked.scaling, arm, size, options_of(changes), plan_of(widths[size]))
        for arm in study.arms
        for size, changes in study.asked.scaling.sizes.items()
    ]


def test_options_of_a_size_are_those_of_the_command_line():
    changes = {"model": {"size": {"dim": 64}, "mask": "Causal"}, "data": {"codec": None, "scenes": ["single"]}}
    assert options_of(changes) == [
        "--model.size.dim=64",
        '--model.mask="Causal"',
        "--data.codec=null",
        '--data.scenes=["single"]',
    ]


def test_each_arm_has_each_size(make_scaling):
    study = make_scaling()
    cells = cells_of(study, study.asked.scaling, [], timed=False)
    assert [(cell.arm, cell.size) for cell in cells] == [
        ("causal", "small"),
        ("causal", "large"),
        ("both", "small"),
        ("both", "large"),
    ]
    small, large = cells[:2]
    assert yaml.safe_load(large.plan.config)["model"]["size"]["dim"] == 32
    assert small.lengths == large.lengths == [10, 20, 40] and small.starts == [8, 16, 32]
    assert small.trained_steps == 32 + 2 + 4 + 8
    assert large.parameters == large.plan.parameters > small.parameters
    assert large.flops == large.plan.flops > small.flops


def test_lengths_can_be_given_in_operations(make_scaling):
    study = make_scaling(steps=None, flops=[3e9, 9e9], count="6ND", parameters="without_embedding")
    for cell, width in zip(cells_in(study), (16, 32, 16, 32), strict=True):
        assert cell.parameters == (1000 - 302) * width
        assert cell.flops == 6 * cell.parameters * 80.0
        for steps, budget in zip(cell.lengths, (3e9, 9e9), strict=True):
            assert steps * cell.flops == pytest.approx(budget, abs=cell.flops / 2)


def test_runs_share_a_trunk_for_each_arm_size_and_seed(make_scaling, tmp_path):
    study = make_scaling()
    cells = [cell._replace(options=[*cell.options, "--data.batch_size=2"]) for cell in cells_in(study)]
    runs = make_runs(study, cells, 2, tmp_path)
    assert len(runs) == 2 * 3 * 4 and [run.job.seed for run in runs] == [0] * 12 + [1] * 12
    assert [run.steps for run in runs[:12]] == [10] * 4 + [20] * 4 + [40] * 4
    run = next(run for run in runs if run.steps == 20 and run.cell.name == "both, large" and run.job.seed == 1)
    home = tmp_path / "both" / "large" / "seed_1"
    assert run.job.folder == home / "steps_20" and run.job.trunk.folder == home / "constant_rate"
    assert run.job.trunk.starts == (8, 16)
    for words, folder in ((run.job.fit, run.job.folder), (run.job.trunk.fit, run.job.trunk.folder)):
        assert words[words.index("--trainer.default_root_dir") + 1] == str(folder)
        assert {"--model.size.dim=32", "--model.size.n_layers=2", "--data.batch_size=2"} <= set(words)
        assert words[words.index("--data.seed") + 1] == "1"
    assert run.job.fit[-1] == "--trainer.max_steps=20"
    assert run.job.trunk.fit[-1] == "--model.scheduler.init_args.decay_share=0"
    assert len({run.job.folder for run in runs}) == len(runs) and len({run.job.trunk.folder for run in runs}) == 8


@pytest.mark.parametrize(
    ("changes", "texts"),
    [
        ({"sizes": {}}, ["scaling.sizes is empty"]),
        ({"sizes": {"../x": {}}}, ["size '../x'", "rename"]),
        ({"steps": None}, ["either `steps` or `flops`"]),
        ({"flops": [1e9]}, ["either `steps` or `flops`"]),
        ({"steps": [20, 10]}, ["scaling.steps [20, 10]", "increasing"]),
        ({"steps": [0, 10]}, ["scaling.steps [0, 10]", "above 0"]),
        ({"columns": ["cider"]}, ["'cider'", "known: perplexity"]),
        ({"paper": {"FID": 1}}, ["'FID'"]),
        ({"baseline": "neither"}, ["unknown arm 'neither'", "causal, both"]),
        ({"challenger": None}, ["both `baseline` and `challenger`"]),
        ({"parameters": "some"}, ["parameters", "some"]),
    ],
)
def test_invalid_section_is_an_error(make_scaling, changes, texts):
    with pytest.raises(InputError) as caught:
        make_scaling(**changes)
    for text in ("study.yaml", *texts):
        assert text in str(caught.value)


@pytest.mark.parametrize(
    ("plan", "steps", "texts"),
    [
        (plan_of(16, "x.WarmupCosine"), [10], ["model.scheduler WarmupCosine", "use WarmupStableDecay"]),
        (plan_of(16, total_steps=9), [10], ["model.scheduler.total_steps 9", "use ${trainer.max_steps}"]),
        (plan_of(16), [1, 40], ["of 1, 40 steps", "at the steps 1, 32", "warm-up (2)"]),
        (plan_of(16, decay_share=0.9), [25, 26], ["at the steps 3, 3", "must increase"]),
    ],
)
def test_invalid_schedule_is_an_error_before_training(make_scaling, plan, steps, texts):
    study = make_scaling(steps=steps)
    with pytest.raises(InputError) as caught:
        cell_of(study, study.asked.scaling, "both", "small", [], plan)
    for text in ("study.yaml", "arm both, size small", *texts):
        assert text in str(caught.value)


def test_equal_sizes_are_an_error_before_training(make_scaling):
    study = make_scaling(sizes={"small": {}, "same": {}}).only(["both"])
    with pytest.raises(InputError, match="both, small and both, same have the same config"):
        cells_of(study, study.asked.scaling, [], timed=False)


def test_dry_run_prints_the_plan_and_runs_nothing(tmp_path, monkeypatch, capsys):
    scaling = SCALING | {"sizes": {"small": {}}}
    write_tiny(tmp_path / "tiny.yaml", model=TINY["model"] | {"scheduler": SCHEDULE}, study={"scaling": scaling})
    monkeypatch.chdir(tmp_path)
    cli.main(["scaling", "--config", "tiny.yaml", "--dry_run", "true"])
    shown = capsys.readouterr().err
    assert "causal" in shown and "both" in shown and "small" in shown and "2 nets, 3 seeds" in shown
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]


def test_study_without_the_section_is_an_error(tiny, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        cli.main(["scaling", "--config", str(tiny)])
    assert "has no section `study.scaling`" in capsys.readouterr().err


def test_table_has_the_cost_of_each_net(make_scaling):
    study = make_scaling()
    cells = [cell._replace(plan=cell.plan._replace(seconds=0.5)) for cell in cells_in(study)]
    console = Console(width=200)
    with console.capture() as capture:
        console.print(table_of(cells, seeds=3, parallel=2))
    assert "46" in capture.get() and "23 s" in capture.get()
    assert "4 nets, 3 seeds, 2 at a time: about 2 min" in " ".join(capture.get().split())  # 3 * 4 * 23 s / 2


# The report


def finish(run, columns):
    """Make a run look trained and evaluated."""
    job = run.job
    job.folder.mkdir(parents=True)
    (job.folder / "finished.json").write_text(json.dumps({"step": job.max_steps}))
    (job.folder / "evaluate.yaml").write_text(job.evaluate)
    (job.folder / "evaluation.json").write_text(json.dumps({"metrics": {"3": columns}, "skipped": {}}))


@pytest.fixture
def reported(make_scaling, tmp_path):
    """Write the report of runs whose perplexity is a power of the FLOPs: the challenger needs half of them."""

    def reported(**changes):
        study = make_scaling(**changes)
        runs = make_runs(study, cells_in(study), 2, tmp_path / "runs")
        for run in runs[:-1]:
            flops = run.cell.flops * run.steps * (2 if run.cell.arm == "both" else 1)
            columns = {"perplexity": 1e4 * flops**-0.3}
            finish(run, columns | ({"geneval": 0.0} if run.cell.arm == "both" else {}))
        outcomes = [Outcome(run.job, None if run.job.evaluated else "it broke") for run in runs]
        context = Circumstances("lit-transfusion scaling", ["commit 1"], "1 CPU", 60.0)
        path = write_report(study, study.asked.scaling, runs, outcomes, context, tmp_path / "report")
        return runs, path.read_text()

    return reported


def row(text, *cells):
    """The cells of the row that starts with these cells."""
    found = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| " + " | ".join(cells))]
    assert found, cells
    return found[0]


def test_report_has_the_parity_ratio_the_trends_and_the_prediction(reported, tmp_path):
    runs, text = reported()
    assert "23 of 24 runs" in text and "both, large, 40 steps, seed 1: it broke" in text
    parity = row(text, "perplexity ↓", "0.489")
    assert float(parity[2]) == pytest.approx(0.5, rel=1e-3) and parity[5] == "no"
    assert float(row(text, "perplexity ↓", "causal", "-0.3")[2]) == pytest.approx(-0.3)
    size, law, predicted, _, measured, error = row(text, "perplexity ↓", "both", "large")[2:]
    assert (size, law) == ("large", "trend") and predicted == measured and float(error.strip("%")) == 0
    assert "too few points" in row(text, "perplexity ↓", "causal", "(too few")[2]
    assert "has no logarithm" in row(text, "geneval ↑", "both", "(run")[2]  # zero
    assert (tmp_path / "report" / "scaling.png").stat().st_size > 10_000
    points = list(csv.DictReader((tmp_path / "report" / "points.csv").open()))
    assert len(points) == 23 and len({point["run"] for point in points}) == 8
    first = points[0]
    assert float(first["tokens"]) == runs[0].cell.plan.tokens * 10
    assert float(first["flops"]) == runs[0].cell.flops * 10 and float(first["parameters"]) == runs[0].cell.parameters


def test_report_of_equal_operations_has_parabolas(reported):
    sizes = {str(dim): {"model": {"size": {"dim": dim}}} for dim in (16, 32, 64)}
    _, text = reported(sizes=sizes, steps=None, flops=[2e10, 8e10])
    assert "## Equal FLOPs" in text
    assert "needs 2" in row(text, "perplexity ↓", "causal", "(perplexity has its minimum")[2]  # larger is better here
