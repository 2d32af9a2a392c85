"""docs/architecture.md: its examples run as they are written, and the files that it names exist."""

import re
import shlex
import sys
from pathlib import Path

import pytest
import torch

import lit_transfusion
from lit_transfusion import cli
from lit_transfusion.config.argv import spell_out
from lit_transfusion.config.lightning import parts_of
from lit_transfusion.data.types import Skipped
from lit_transfusion.evaluation.metric import Subject
from lit_transfusion.generation.engine import draw
from lit_transfusion.generation.pipeline import Pipeline
from lit_transfusion.generation.settings import Sampling
from lit_transfusion.shapes.source import Shapes

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE, re.DOTALL))
COMMANDS = {  # by the module that they name
    re.search(r"(my_\w+)\.", command)[1]: shlex.split(command)[3:]
    for command in re.findall(r"^python -m lit_transfusion .*my_\w+\..*$", PAGE, re.MULTILINE)
}
SMALL = "--model.size nano --trainer.accelerator cpu --data.num_workers 0 --data.batch_size 1 --data.vocab_size 300"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The files of the page, where a reader would start the commands."""
    folder = tmp_path_factory.mktemp("reader")
    for name, code in FILES.items():
        (folder / name).write_text(code, encoding="utf-8")
    (table,) = re.findall(r"```csv\n(.*?)```", PAGE, re.DOTALL)
    (folder / "colours.csv").write_text(table, encoding="utf-8")
    before = dict(sys.modules)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield folder
    for name in sys.modules.keys() - before.keys() & {Path(name).stem for name in FILES}:
        del sys.modules[name]


@pytest.fixture
def built(folder, monkeypatch):
    def built(module: str):
        """The parts of the run that the page's command starts."""
        monkeypatch.chdir(ROOT)
        subcommand, *words = COMMANDS[module]
        assert subcommand == "fit"
        words = [str(folder / word) if word == "colours.csv" else word for word in words]
        return parts_of([*words, *SMALL.split()])

    return built


def losses(parts):
    """Of one batch, after a backward pass that reaches the weights."""
    batch = next(iter(parts.datamodule.train_dataloader()))
    assert batch.num_images
    terms, _ = parts.model.losses(parts.model.net, batch, torch.Generator().manual_seed(0))
    terms.total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in parts.model.net.parameters())
    return terms


def test_every_example_has_a_file_and_a_command():
    names = ("rules", "patchers", "noise", "codecs", "sources", "metrics")
    assert list(FILES) == [f"my_{name}.py" for name in names]
    assert list(COMMANDS) == [f"my_{name}" for name in names]


@pytest.mark.parametrize("module", ["my_rules", "my_patchers", "my_noise", "my_codecs"])
def test_part_is_trained_described_and_drawn_with(built, module):
    parts = built(module)
    pipeline = parts.model.pipeline
    assert f"'{module}." in str(pipeline.describe())
    assert losses(parts).total > 0
    again = Pipeline.from_description(pipeline.describe())
    again.net.load_state_dict(pipeline.net.state_dict())
    settings = Sampling(num_inference_steps=2)
    drawn, drawn_again = (draw(one, ["a red circle"], settings) for one in (pipeline, again))
    assert drawn[0].shape == (3, pipeline.image_size, pipeline.image_size) and torch.equal(*drawn, *drawn_again)


def test_patch_under_the_mask_sees_its_image_alone(folder):
    import my_rules

    from lit_transfusion.model.visibility import dense_mask

    image_ids = torch.tensor([[-1, -1, 0, 0, -1, 1, 1]])
    seen = dense_mask(*my_rules.OwnImage().intervals(torch.zeros_like(image_ids), image_ids))[0].int().tolist()
    assert seen[1] == [1, 1, 0, 0, 0, 0, 0] and seen[4] == [1, 1, 1, 1, 1, 0, 0]
    assert seen[2] == seen[3] == [0, 0, 1, 1, 0, 0, 0] and seen[5] == seen[6] == [0, 0, 0, 0, 0, 1, 1]


def test_true_velocity_leads_to_the_image(folder):
    import my_noise

    process = my_noise.TrigFlow()
    image, noise = torch.rand(1, 1, 2, 2), torch.randn(1, 1, 2, 2)
    x = process.add_noise(image, noise, torch.tensor([1000]))
    sampler = process.sampler("ddim", 7)
    for timestep in sampler.timesteps.tolist():
        x = sampler.step(process.target(image, noise, torch.tensor([timestep])), timestep, x).prev_sample
    torch.testing.assert_close(x, image, atol=1e-5, rtol=0)


def test_source_is_held_out_skipped_and_learned(built):
    parts = built("my_sources")
    source = parts.datamodule.source
    train, held_out = source.split("train"), source.split("val")
    assert len(train) + len(held_out) == len(source) == 11 and 2 <= len(held_out) <= 4
    assert not set(train.captions()) & set(held_out.captions())
    red, wrong = source[0], source[10]
    assert red.captions == ("red",) and red.image[:, 5, 7].tolist() == [1, -1, -1]
    assert isinstance(wrong, Skipped) and "unknown" in wrong.reason
    assert losses(parts).image > 0


def test_metric_is_parsed_and_measured(folder, built, monkeypatch):
    pipeline = built("my_rules").model.pipeline
    command = COMMANDS["my_metrics"]
    parser = cli.tool_parser(command[0])
    options = parser.instantiate(parser.parse_args(spell_out(cli.tool_of(command[0]), command[1:])))
    metric = options.metrics[0]
    assert type(metric).__name__ == "ColourError"
    source = Shapes(image_size=pipeline.image_size, num_examples=10, num_val_examples=4)
    subject = Subject(pipeline, source, 3, Sampling(num_inference_steps=1))
    columns = metric(subject)
    assert columns.keys() == metric.columns.keys() and len(subject.each["colour_error"]) == 3
    assert columns["colour_error"] == pytest.approx(sum(subject.each["colour_error"]) / 3, rel=1e-5)


def test_files_that_the_page_names_exist():
    package = Path(lit_transfusion.__file__).parent
    names = {name for name in re.findall(r"`([\w/]+(?:\.py|/))`", PAGE) if not name.startswith("my_")}
    assert len(names) > 60
    missing = [name for name in names if not ((package / name).exists() or (ROOT / name).exists())]
    assert not missing


def test_walks_name_each_file_once_and_in_order():
    walks = PAGE.partition("## Three walks")[2].split("\n### ")[1:]
    assert len(walks) == 3
    for walk in walks:
        files = re.findall(r"`([\w/]+\.py)`", walk)
        assert len(files) == len(set(files)), sorted({name for name in files if files.count(name) > 1})
