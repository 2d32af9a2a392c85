"""The modules that a checkpoint, an export, or the config beside a checkpoint can import."""

import sys
from pathlib import Path

import pytest
import torch
import yaml

from lit_transfusion import cli
from lit_transfusion.allowed_imports import foreign_modules, import_named
from lit_transfusion.errors import InputError
from lit_transfusion.generation.pipeline import KEY
from lit_transfusion.model import Causal

MODULE = """
from pathlib import Path
from lit_transfusion.shapes.source import Shapes
from lit_transfusion.model import Causal

Path("imported").touch()

class Window(Causal):
    def __init__(self, size: int = 3) -> None:
        self.size = size

class _Drawings(Shapes):  # private, since other tests in this process list all sources
    pass
"""
FAST = ["--num_inference_steps", "1"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a module of the user, which creates a file when it is imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_ideas.py").write_text(MODULE)
    yield tmp_path
    sys.modules.pop("my_ideas", None)


@pytest.fixture
def checkpoint(folder, make_pipeline):
    """A checkpoint whose mask, and the source of its run, are from that module."""
    pipeline = make_pipeline(mask=Causal())
    pipeline.image_size = 16
    description = pipeline.describe()
    description["mask"] = {"class_path": "my_ideas.Window", "init_args": {"size": 5}}
    path = folder / "run" / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    weights = {f"net.{name}": weight for name, weight in pipeline.net.state_dict().items()}
    torch.save({"state_dict": weights, KEY: description}, path)
    source = {"class_path": "my_ideas._Drawings", "init_args": {"num_val_examples": 4}}
    (folder / "run" / "config.yaml").write_text(yaml.safe_dump({"data": {"source": source}}))
    return str(path)


@pytest.fixture
def error_of(capsys):
    """Run a command that must fail; return its message."""

    def error_of(*words):
        with pytest.raises(SystemExit) as caught:
            cli.main(list(words))
        assert caught.value.code == 2
        return capsys.readouterr().err.strip().splitlines()[-1]

    return error_of


def was_imported():
    return Path("imported").exists() or "my_ideas" in sys.modules


COMMANDS = [
    ["generate", "--prompt", "two"],
    ["export", "--output", "model"],
    ["score_shapes", "--num_samples", "1"],
    ["evaluate", "--metrics", "ImageShare", "--num_examples", "2"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_checkpoint_imports_a_module_only_if_the_user_names_it(checkpoint, error_of, command):
    options = [*command[1:], "--ckpt", checkpoint, *([] if command[0] == "export" else FAST)]
    message = error_of(command[0], *options)
    assert "my_ideas.Window" in message and "--import_module my_ideas" in message and "last.ckpt" in message
    assert not was_imported()
    cli.main([command[0], *options, "--import_module", "my_ideas"])
    assert was_imported()


def test_export_imports_a_module_only_if_the_user_names_it(checkpoint, error_of):
    cli.main(["export", "--ckpt", checkpoint, "--output", "model", "--import_module=my_ideas"])
    Path("imported").unlink()
    del sys.modules["my_ideas"]
    assert "model/config.json: my_ideas.Window" in error_of("generate", "--ckpt", "model", "--prompt", "two", *FAST)
    assert not was_imported()
    cli.main(["generate", "--import_module", "my_ideas", "--ckpt", "model", "--prompt", "two", *FAST])


def test_config_beside_a_checkpoint_imports_a_module_only_if_the_user_names_it_or_passes_the_file(
    checkpoint, error_of, make_pipeline
):
    pipeline = make_pipeline()
    pipeline.image_size = 16
    weights = {f"net.{name}": weight for name, weight in pipeline.net.state_dict().items()}
    torch.save({"state_dict": weights, KEY: pipeline.describe()}, checkpoint)
    evaluate = ["evaluate", "--ckpt", checkpoint, "--metrics", "ImageShare", "--num_examples", "2", *FAST]
    message = error_of(*evaluate)
    assert "run/config.yaml" in message and "my_ideas._Drawings" in message and "--import_module my_ideas" in message
    assert not was_imported()
    cli.main([*evaluate, "--import_module", "my_ideas"])
    del sys.modules["my_ideas"]
    Path("imported").unlink()
    cli.main([*evaluate, "--data", "run/config.yaml"])
    assert was_imported()


@pytest.mark.parametrize(
    "source",
    [
        "my_ideas._Drawings",
        '{"class_path": "my_ideas._Drawings"}',
        {"class_path": "Mix", "init_args": {"sources": {"a": "my_ideas._Drawings"}}},
        {"class_path": "Mix", "init_args": {"sources": {"a": '{"class_path": "my_ideas._Drawings"}'}}},
        {"class_path": "Shapes", "init_args": {"scenes": {"class_path": "my_ideas._Drawings"}}},
    ],
)
def test_no_form_of_a_class_path_imports_the_module(checkpoint, error_of, make_pipeline, source):
    """A class can be given in several forms; none of them imports the module."""
    pipeline = make_pipeline()
    pipeline.image_size = 16
    weights = {f"net.{name}": weight for name, weight in pipeline.net.state_dict().items()}
    torch.save({"state_dict": weights, KEY: pipeline.describe()}, checkpoint)
    Path("run/config.yaml").write_text(yaml.safe_dump({"data": {"source": source}}))
    error_of("evaluate", "--ckpt", checkpoint, "--metrics", "ImageShare", *FAST)
    assert not was_imported()


def test_missing_module_is_an_error(error_of):
    assert "--import_module no_ideas: No module named 'no_ideas'" in error_of("generate", "--import_module", "no_ideas")


@pytest.mark.parametrize("words", [["--import_module"], ["--import_module="], ["--import_module", "../x"]])
def test_invalid_module_name_is_an_error(words):
    with pytest.raises(InputError, match="--import_module"):
        import_named(words)


def test_foreign_modules_of_a_config():
    config = {
        "model": {
            "mask": {"class_path": "a.b.Mask", "init_args": {}},
            "optimizer": {"class_path": "torch.optim.AdamW"},
        },
        "callbacks": [{"class_path": "lightning.pytorch.callbacks.Timer"}, {"class_path": "c.Callback"}],
        "data": {"source": {"class_path": "Shapes"}, "again": {"class_path": "a.b.Other"}},
        "codec": {"class_path": "lit_transfusion.latents.Pixels"},
    }
    assert foreign_modules(config) == ["a.b", "c"]
