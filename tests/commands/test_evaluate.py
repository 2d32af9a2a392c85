"""The command `evaluate`: which metrics are measured, on what and how often, the files it writes, and its errors."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
import yaml
from PIL import Image

from lit_transfusion import cli
from lit_transfusion.commands.evaluate import default_metrics, measure, source_of
from lit_transfusion.evaluation import KID, ImageShare, Perplexity, TextPerplexity
from lit_transfusion.evaluation.metric import Metric, Unavailable
from lit_transfusion.generation.pipeline import KEY
from lit_transfusion.shapes.captions import ShapeCaptions
from lit_transfusion.shapes.source import Shapes

FEW = ["--num_examples", "3", "--num_inference_steps", "2"]


class Counting(Metric):
    """Records how it is called."""

    columns: ClassVar[dict[str, str]] = {"asked": "neither", "scale": "neither"}
    asked: ClassVar[list] = []

    def __call__(self, subject):
        self.asked.append((subject.num_examples, subject.sampling, subject.batch_size))
        return {"asked": float(len(self.asked)), "scale": subject.sampling.guidance_scale}


class Once(Counting):
    samples = False
    columns: ClassVar[dict[str, str]] = {"once": "neither"}

    def __call__(self, subject):
        super().__call__(subject)
        return {"once": 7.0}


class Drawing(Metric):
    columns: ClassVar[dict[str, str]] = {"mean": "neither"}

    def __call__(self, subject):
        return {"mean": float(torch.stack(subject.drawn).mean())}


class WithBaseline(Once):
    def baselines(self, subject):
        return {"guess": {"once": 0.625}}


class OutOfReach(Metric):
    columns: ClassVar[dict[str, str]] = {"distance": "less"}

    def __call__(self, subject):
        raise Unavailable("its weights are missing")


@pytest.fixture(autouse=True)
def asked():
    Counting.asked.clear()
    return Counting.asked


@pytest.fixture
def run(make_subject, tmp_path, monkeypatch):
    """The part of a run's folder that the command needs: a checkpoint, and a config with a source."""
    monkeypatch.chdir(tmp_path)
    pipeline = make_subject().pipeline
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    weights = {f"net.{name}": weight for name, weight in pipeline.net.state_dict().items()}
    torch.save({"state_dict": weights, KEY: pipeline.describe()}, tmp_path / "run" / "checkpoints" / "last.ckpt")
    source = {"class_path": "Shapes", "init_args": {"num_val_examples": 5}}
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump({"data": {"source": source}}))
    return tmp_path / "run"


@pytest.fixture
def measured(run, capsys):
    """Runs the command; returns the content of evaluation.json and the printed text."""

    def measured(*words, ckpt="run/checkpoints/last.ckpt"):
        cli.main(["evaluate", "--ckpt", ckpt, "--output", "out", *FEW, *words])
        return json.loads((run.parent / "out" / "evaluation.json").read_text()), capsys.readouterr().out

    return measured


# Metrics


def test_metrics_are_named_by_words(measured):
    result, printed = measured("--metrics", "Perplexity", "ImageShare")
    (columns,) = result["metrics"].values()
    assert list(columns) == [*Perplexity.columns, *ImageShare.columns]
    assert result["num_examples"] == 3 and result["skipped"] == {}
    assert result["sampling"] == {"sampler": "ddim", "num_inference_steps": 2, "seed": 0}
    assert result["ckpt"] == "run/checkpoints/last.ckpt" and result["seconds"] > 0
    assert all(column in printed for column in columns)


def test_a_users_own_class_is_named_by_its_path(measured, asked):
    own = f"{__name__}.Counting"
    result, _ = measured("--metrics", own, "--batch_size", "2", "--seed", "5", "--sampler", "ddpm")
    assert result["metrics"] == {"3": {"asked": 1.0, "scale": 3.0}}
    ((num_examples, sampling, batch_size),) = asked
    assert (num_examples, batch_size) == (3, 2)
    assert (sampling.sampler, sampling.num_inference_steps, sampling.seed) == ("ddpm", 2, 5)


def test_metrics_in_a_file_have_arguments(measured, run):
    metrics = [{"class_path": "ImageShare", "init_args": {"max_new_tokens": 1}}, f"{__name__}.Once"]
    (run.parent / "mine.yaml").write_text(yaml.safe_dump({"metrics": metrics}))
    result, _ = measured("--config", "mine.yaml")
    assert list(result["metrics"]["3"]) == ["once", "image_share"]


def test_the_source_may_come_from_a_config_with_bases(run):
    """configs/ablate_mask.yaml has two levels of bases; arguments in a later file override those in its base."""
    study = Path(__file__).parents[2] / "configs" / "ablate_mask.yaml"
    pipeline = SimpleNamespace(image_size=24, multiple_of=None)
    source = source_of(study, pipeline)
    assert type(source) is Shapes and source.image_size == 24
    path = run / "mine.yaml"
    content = {"base": str(study), "data": {"source": {"init_args": {"num_val_examples": 7}}}}
    path.write_text(yaml.safe_dump(content))
    assert len(source_of(path, pipeline).split("val")) == 7


def test_scores_of_each_picture_are_saved_for_the_first_guidance_scale(measured):
    result, _ = measured("--metrics", "ShapeCaptions", "Perplexity", "--guidance_scale", "1,3")
    assert result["metrics"].keys() == {"1", "3"} and result["each"].keys() == ShapeCaptions.columns.keys()
    for column, scores in result["each"].items():
        assert len(scores) == 3 and sum(scores) / 3 == result["metrics"]["1"][column]


@pytest.mark.parametrize("words", [["1,3"], ["1", "3"], ["[1,3]"], ["1, 3"]])
def test_a_guidance_sweep_measures_metrics_that_do_not_sample_once(measured, words, asked):
    sweep = ["--guidance_scale", *words]
    result, printed = measured("--metrics", f"{__name__}.Counting", f"{__name__}.Once", *sweep)
    assert result["metrics"] == {
        "1": {"once": 7.0, "asked": 2.0, "scale": 1.0},
        "3": {"once": 7.0, "asked": 3.0, "scale": 3.0},
    }
    assert len(asked) == 3 and "guidance 1" in printed and "guidance 3" in printed


def test_each_scale_draws_for_itself(make_subject):
    subject = make_subject()
    subject.sampling = replace(subject.sampling, guidance_scale=1.0)  # the subject has the first scale
    by_scale, _ = measure([Drawing()], subject, [1.0, 4.0])
    scales = [replace(subject.sampling, guidance_scale=scale) for scale in (subject.sampling.guidance_scale, 4.0)]
    means = [float(torch.stack(replace(subject, sampling=sampling).drawn).mean()) for sampling in scales]
    assert [by_scale[1.0]["mean"], by_scale[4.0]["mean"]] == means and means[0] != means[1]


def test_a_metric_that_cannot_be_measured_is_left_out_with_its_reason(measured):
    result, printed = measured("--metrics", f"{__name__}.OutOfReach", f"{__name__}.Once", "--guidance_scale", "1,3")
    assert result["metrics"] == {"1": {"once": 7.0}, "3": {"once": 7.0}}
    assert result["skipped"] == {"OutOfReach": "its weights are missing"}
    assert printed.count("OutOfReach was left out: its weights are missing") == 1


def test_baselines_are_columns_of_the_table(measured):
    names = [f"{__name__}.{name}" for name in ("WithBaseline", "Counting", "OutOfReach")]
    result, printed = measured("--metrics", *names)
    assert result["baselines"] == {"guess": {"once": 0.625}}
    (row,) = [line for line in printed.splitlines() if "once" in line]
    assert "7" in row and "0.625" in row and "guess" in printed


def test_metrics_that_download_are_not_measured_by_default():
    names = [type(metric).__name__ for metric in default_metrics()]
    assert len(set(names)) == len(names) and not {"FID", "CLIPScore"} & set(names)
    (kid,) = [metric for metric in default_metrics() if isinstance(metric, KID)]
    assert kid.features.name == "efficientnet_lite0"
    columns = [column for metric in default_metrics() for column in metric.columns]
    assert len(set(columns)) == len(columns)  # no two metrics share a column


@pytest.mark.slow
def test_default_metrics_are_measured(measured):
    result, _ = measured("--num_examples", "5")  # enough captions for RankedCaptions
    (columns,) = result["metrics"].values()
    assert set(columns) == {column for metric in default_metrics() for column in metric.columns}
    assert result["skipped"] == {}


def test_default_of_texts_is_their_perplexity(measured, run):
    (run.parent / "texts").mkdir()
    for number in range(9):
        (run.parent / "texts" / f"{number}.txt").write_text(f"a red circle and {number} squares")
    source = {"class_path": "TextCorpus", "init_args": {"path": str(run.parent / "texts"), "val_fraction": 0.5}}
    (run.parent / "texts.yaml").write_text(yaml.safe_dump({"data": {"source": source}}))
    result, printed = measured("--data", "texts.yaml")
    (columns,) = result["metrics"].values()
    assert set(columns) == set(TextPerplexity.columns) and result["skipped"] == {}
    assert 2 <= result["num_examples"] <= 3 and "prompts" not in result
    assert f", {result['num_examples']} examples" in " ".join(printed.split())


# Data and written files


def test_drawn_pictures_are_saved_with_their_prompts(measured, run):
    result, _ = measured("--metrics", f"{__name__}.Drawing")
    files = sorted((run.parent / "out" / "samples").iterdir())
    assert [file.name for file in files] == ["0.png", "1.png", "2.png"]
    assert Image.open(files[0]).size == (16, 16)
    assert len(result["prompts"]) == 3 and all(isinstance(prompt, str) for prompt in result["prompts"])


def test_without_output_nothing_is_written(run, capsys):
    before = sorted(run.parent.rglob("*"))
    cli.main(["evaluate", "--ckpt", "run/checkpoints/last.ckpt", *FEW, "--metrics", f"{__name__}.Drawing"])
    assert "mean" in capsys.readouterr().out and sorted(run.parent.rglob("*")) == before


def test_no_more_examples_than_there_are(measured):
    assert measured("--metrics", f"{__name__}.Once", "--num_examples", "99")[0]["num_examples"] == 5


def test_a_checkpoint_outside_a_run_needs_data(measured, run):
    (run / "checkpoints" / "last.ckpt").rename(run.parent / "moved.ckpt")
    words = ["--metrics", f"{__name__}.Once", "--data", "run/config.yaml"]
    assert measured(*words, ckpt="moved.ckpt")[0]["num_examples"] == 3


# Errors


@pytest.mark.parametrize(
    ("words", "texts"),
    [
        (["--metrics", "Perplexy"], ["Perplexy", "BLEU", "ShapeCaptions"]),
        (["--metrics", "none.Own"], ["none.Own"]),
        (["--metrics", "lit_transfusion.latents.Pixels"], ["Pixels", "subclass of Metric"]),
        (["--metrics", "os.system"], ["os.system", "not allowed"]),
        (["--metrics"], ["--metrics", "at least one"]),
        (["--config", "side.yaml"], ["EfficientNetLite0", "side 3 ", "multiple of 32"]),
        (["--num_examples", "1"], ["num_examples 1"]),
        (["--batch_size", "0"], ["batch_size 0"]),
        (["--guidance_scale", "3,3"], ["guidance_scale [3.0, 3.0]", "once"]),
        (["--guidance_scale"], ["guidance_scale", "at least one"]),
        (["--guidance_scale", "high"], ["guidance_scale", "high"]),
        (["--guidance_scale", "1,-1"], ["guidance_scale -1"]),
        (["--num_inference_steps", "0"], ["num_inference_steps 0"]),
        (["--num_inference_steps", "5000"], ["num_inference_steps 5000"]),
        (["--sampler", "euler"], ["euler", "dpm++"]),
        (["--data", "none.yaml"], ["none.yaml"]),
        (["--data", "empty.yaml"], ["empty.yaml", "data.source", "config.yaml of a run"]),
        (["--data", "unknown.yaml"], ["unknown.yaml", "source", "Photos", "EditTriples"]),
        (["--data", "gone.yaml"], ["gone.yaml, data.source: ", "gone", "--data CONFIG.yaml"]),
        (["--data", "edits.yaml"], ["edits.yaml", "data.source ShapeEdits", "score_edits"]),
        (["--data", "texts.yaml"], ["nothing to measure", "held-out texts", "val_fraction", "--data CONFIG.yaml"]),
        (["--ckpt", "none.ckpt"], ["none.ckpt not found"]),
        (["--ckpt", "moved.ckpt"], ["moved.ckpt", "--data CONFIG.yaml"]),
        (["--ckpt", "run/config.yaml"], ["checkpoint run/config.yaml cannot be read"]),
    ],
    ids=lambda value: " ".join(value[:2]),
)
def test_errors_are_one_line(run, capsys, asked, words, texts):
    features = "{class_path: EfficientNetLite0, init_args: {side: 3}}"  # nested arguments in a list
    (run.parent / "side.yaml").write_text(f"metrics: [{{class_path: KID, init_args: {{features: {features}}}}}]")
    (run.parent / "empty.yaml").write_text("data: {}")
    (run.parent / "unknown.yaml").write_text("data: {source: Photos}")
    (run.parent / "gone.yaml").write_text("data: {source: {class_path: ImageCaptions, init_args: {path: gone}}}")
    (run.parent / "edits.yaml").write_text("data: {source: ShapeEdits}")
    (run.parent / "some.txt").write_text("some words")
    (run.parent / "texts.yaml").write_text("data: {source: {class_path: TextCorpus, init_args: {path: some.txt}}}")
    (run.parent / "moved.ckpt").write_bytes((run / "checkpoints" / "last.ckpt").read_bytes())
    once = [] if {"--metrics", "--config"} & {*words} else ["--metrics", f"{__name__}.Once"]
    with pytest.raises(SystemExit) as caught:
        cli.main(["evaluate", "--ckpt", "run/checkpoints/last.ckpt", *FEW, *once, *words])
    captured = capsys.readouterr()
    assert caught.value.code == 2 and not captured.out and not asked
    assert captured.err.startswith("error: ") and len(captured.err.splitlines()) == 1
    for text in texts:
        assert text in captured.err
