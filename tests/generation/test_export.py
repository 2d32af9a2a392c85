"""Exported models: written to a folder, read elsewhere, pushed to the hub and downloaded."""

import fnmatch
import importlib
import json
import shutil
import subprocess
import sys
from dataclasses import asdict

import pytest
import torch
import yaml
from huggingface_hub import HfApi
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import lit_transfusion
from lit_transfusion import hub
from lit_transfusion.commands.export import export
from lit_transfusion.diffusion import DDPM
from lit_transfusion.errors import InputError
from lit_transfusion.generation.pipeline import Pipeline
from lit_transfusion.latents import VAE, Pixels
from lit_transfusion.model import Bidirectional, LinearPatcher, TransformerConfig, Transfusion

FILES = {"README.md", "config.json", "model.safetensors", "tokenizer.model"}
NOISE = DDPM(num_train_timesteps=50, beta_schedule="linear", prediction_type="v_prediction", clip_sample=True)
OWN_PACKAGE = """
from lit_transfusion.model import Causal, LinearPatcher

class Window(Causal):
    def __init__(self, size=3):
        self.size = size

class Tied(LinearPatcher):
    def __init__(self, dim):
        super().__init__(3, dim, 2)
        self.again = self.proj_in
"""


def files_of(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def exported(make_pipeline, tmp_path):
    """A folder with an exported model."""
    make_pipeline().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def own_package(tmp_path, monkeypatch):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "own_parts.py").write_text(OWN_PACKAGE)
    monkeypatch.syspath_prepend(tmp_path / "own")
    import own_parts

    yield own_parts
    del sys.modules["own_parts"]


def change_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


# Folders


@pytest.mark.parametrize("patcher", ["linear", "unet"])
def test_a_folder_gives_the_same_pipeline(make_pipeline, assert_same_outputs, tmp_path, patcher):
    pipeline = make_pipeline(patcher, noise=NOISE)
    pipeline.save_pretrained(tmp_path / "model")
    shutil.move(tmp_path / "model", tmp_path / "moved")
    again = Pipeline.from_pretrained(str(tmp_path / "moved"))
    assert again.describe() == pipeline.describe()
    assert not again.net.training
    assert_same_outputs(pipeline, again)
    assert files_of(tmp_path / "moved") == FILES


def test_contents_of_the_files(exported, make_pipeline):
    pipeline = make_pipeline()
    config = json.loads((exported / "config.json").read_text())
    assert config["lit_transfusion_version"] == lit_transfusion.__version__
    assert config["size"] == asdict(pipeline.net.transformer.config)
    assert (exported / "tokenizer.model").read_bytes() == pipeline.tokenizer.model
    with safe_open(exported / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    weights = load_file(exported / "model.safetensors")
    assert weights.keys() == pipeline.net.state_dict().keys()
    assert all(torch.equal(weights[name], weight) for name, weight in pipeline.net.state_dict().items())


def test_a_model_card_describes_the_model_and_is_not_overwritten(exported, make_pipeline):
    head, body = (exported / "README.md").read_text(encoding="utf-8").split("---\n")[1:]
    assert yaml.safe_load(head)["library_name"] == "lit_transfusion"
    parameters = sum(p.numel() for p in make_pipeline().net.parameters())
    for text in (f"| parameters | {parameters:,} |", "dim 32, 2 layers", "| mask | Bidirectional |", "4 × 4 pixels"):
        assert text in body
    (exported / "README.md").write_text("Mine.")
    make_pipeline().save_pretrained(exported)
    assert (exported / "README.md").read_text() == "Mine."


def test_device(exported):
    assert Pipeline.from_pretrained(exported, device="meta").net.head.weight.is_meta


def test_shared_weights_are_written_once_and_shared_again(own_package, tokenizer, assert_same_outputs, tmp_path):
    torch.manual_seed(0)
    size = TransformerConfig(dim=32, n_layers=1, n_heads=2)
    net = Transfusion(tokenizer.vocab_size, size, own_package.Tied(dim=32), Bidirectional())
    pipeline = Pipeline(net.eval(), NOISE, Pixels(), tokenizer, image_size=4)
    pipeline.save_pretrained(tmp_path)
    assert len(load_file(tmp_path / "model.safetensors")) < len(net.state_dict())
    again = Pipeline.from_pretrained(tmp_path)
    assert_same_outputs(pipeline, again)


# Codecs with weights


@pytest.fixture
def with_vae(tokenizer, tmp_path):
    """A pipeline with the latents of an autoencoder in a local folder."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    autoencoder = AutoencoderKL(
        block_out_channels=(4, 8), norm_num_groups=2, latent_channels=5, scaling_factor=0.3, **blocks
    )
    autoencoder.save_pretrained(tmp_path / "private" / "vae")
    size = TransformerConfig(dim=32, n_layers=1, n_heads=2)
    net = Transfusion(tokenizer.vocab_size, size, LinearPatcher(5, dim=32, patch_size=2), Bidirectional())
    codec = VAE(str(tmp_path / "private"), subfolder="vae", sample_posterior=False)
    return Pipeline(net.eval(), NOISE, codec, tokenizer, image_size=8)


def test_an_autoencoder_is_saved_with_its_pipeline(with_vae, assert_same_outputs, tmp_path):
    with_vae.save_pretrained(tmp_path / "model")
    shutil.rmtree(tmp_path / "private")
    shutil.move(tmp_path / "model", tmp_path / "moved")
    again = Pipeline.from_pretrained(tmp_path / "moved")
    assert not again.codec.sample_posterior
    assert_same_outputs(with_vae, again)
    assert files_of(tmp_path / "moved") == FILES | {"codec/config.json", "codec/diffusion_pytorch_model.safetensors"}


def test_no_local_path_is_exported(with_vae, tmp_path):
    with_vae.save_pretrained(tmp_path / "model")
    for file in files_of(tmp_path / "model"):
        assert str(tmp_path).encode() not in (tmp_path / "model" / file).read_bytes(), file


def test_all_files_have_the_same_permissions(with_vae, tmp_path):
    with_vae.save_pretrained(tmp_path / "model")
    modes = {(tmp_path / "model" / file).stat().st_mode for file in files_of(tmp_path / "model")}
    assert len(modes) == 1


def test_an_exported_model_can_be_exported_again(with_vae, assert_same_outputs, tmp_path):
    """The second export may go to the same folder."""
    with_vae.save_pretrained(tmp_path / "model")
    Pipeline.from_pretrained(tmp_path / "model").save_pretrained(tmp_path / "model")
    assert_same_outputs(with_vae, Pipeline.from_pretrained(tmp_path / "model"))


# The command


@pytest.mark.parametrize("weights", ["ema", "raw"])
@pytest.mark.parametrize("sharded", [False, True], ids=["file", "shards"])
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_export_writes_averaged_or_raw_weights(make_pipeline, save_checkpoint, tmp_path, capsys, weights, sharded):
    pipeline = make_pipeline()
    path = save_checkpoint(tmp_path / "run.ckpt", pipeline, averages=1.0, sharded=sharded)
    export(str(path), str(tmp_path / "new" / "model"), weights)
    assert capsys.readouterr().out == f"{tmp_path / 'new' / 'model'}\n"
    exported = load_file(tmp_path / "new" / "model" / "model.safetensors")
    for name, weight in pipeline.net.state_dict().items():
        assert torch.equal(exported[name], weight + 1 if weights == "ema" else weight), name


def test_export_of_a_run_without_averages(make_pipeline, save_checkpoint, assert_same_outputs, tmp_path):
    pipeline = make_pipeline()
    export(str(save_checkpoint(tmp_path / "run.ckpt", pipeline)), str(tmp_path / "model"))
    assert_same_outputs(pipeline, Pipeline.from_pretrained(tmp_path / "model"))


def test_export_to_an_invalid_folder(make_pipeline, save_checkpoint, tmp_path):
    path = save_checkpoint(tmp_path / "run.ckpt", make_pipeline())
    with pytest.raises(InputError, match=r"--output .*run\.ckpt .*File exists"):
        export(str(path), str(path))


def test_a_part_with_arguments_that_json_cannot_contain_is_an_error(make_pipeline, own_package, tmp_path):
    with pytest.raises(InputError, match=r"config\.json .* set"):
        make_pipeline(mask=own_package.Window({1, 2})).save_pretrained(tmp_path)


# The hub


def test_push_to_hub_uploads_what_is_exported(make_pipeline, assert_same_outputs, tmp_path, monkeypatch):
    """Runs the hub's own code, except the two calls that send data."""

    def create_repo(api, repo_id, **_):
        return type("Repository", (), {"repo_id": repo_id})

    def upload_folder(api, repo_id, folder_path, **_):
        shutil.copytree(folder_path, tmp_path / repo_id)
        return "the commit"

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    pipeline = make_pipeline()
    assert pipeline.push_to_hub("me/shapes") == "the commit"
    assert files_of(tmp_path / "me" / "shapes") == FILES
    assert_same_outputs(pipeline, Pipeline.from_pretrained(tmp_path / "me" / "shapes"))


@pytest.fixture
def put_on_hub(tmp_path):
    """Puts a folder into the hub's cache, as if it were downloaded; returns the arguments to load it."""

    def put_on_hub(folder):
        repository, commit = tmp_path / "cache" / "models--me--shapes", "0" * 40
        shutil.copytree(folder, repository / "snapshots" / commit)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(commit)
        return {"cache_dir": tmp_path / "cache", "local_files_only": True}

    return put_on_hub


def test_a_model_on_the_hub(with_vae, put_on_hub, assert_same_outputs, tmp_path):
    with_vae.save_pretrained(tmp_path / "model")
    assert_same_outputs(with_vae, Pipeline.from_pretrained("me/shapes", **put_on_hub(tmp_path / "model")))


def test_only_the_model_is_downloaded(with_vae, assert_same_outputs, tmp_path, monkeypatch):
    with_vae.save_pretrained(tmp_path / "me")
    (tmp_path / "me" / "pytorch_model.bin").write_bytes(b"who knows")

    def snapshot_download(name, allow_patterns, revision):
        assert (name, revision) == ("me/shapes", "v2")
        for file in files_of(tmp_path / "me"):
            if any(fnmatch.fnmatch(file, pattern) for pattern in allow_patterns):
                (tmp_path / "fetched" / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(tmp_path / "me" / file, tmp_path / "fetched" / file)
        return str(tmp_path / "fetched")

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    assert_same_outputs(with_vae, Pipeline.from_pretrained("me/shapes", revision="v2"))
    assert files_of(tmp_path / "me") - files_of(tmp_path / "fetched") == {"pytorch_model.bin", "README.md"}


def test_a_model_that_is_neither_here_nor_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"runs/quickstrat .*machine.*hub") as error:
        Pipeline.from_pretrained("runs/quickstrat", cache_dir=tmp_path, local_files_only=True)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("path", ["none.ckpt", "runs/last.ckpt", "../x/y", "/none/here", "a/b/c"])
def test_invalid_names_are_not_looked_up_on_the_hub(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **__: pytest.fail("asked"))
    with pytest.raises(InputError, match=f"checkpoint {path} not found"):
        Pipeline.from_pretrained(path)


# Classes of other packages


def test_a_users_own_class_is_loaded_from_a_folder(make_pipeline, own_package, tmp_path):
    make_pipeline(mask=own_package.Window(5)).save_pretrained(tmp_path / "model")
    mask = Pipeline.from_pretrained(tmp_path / "model").net.mask
    assert (type(mask), mask.size) == (own_package.Window, 5)


@pytest.mark.parametrize("place", ["folder", "hub"])
def test_a_model_never_causes_an_import(make_pipeline, own_package, put_on_hub, tmp_path, place):
    make_pipeline(mask=own_package.Window(5)).save_pretrained(tmp_path / "model")
    name, hub = ("me/shapes", put_on_hub(tmp_path / "model")) if place == "hub" else (tmp_path / "model", {})
    del sys.modules["own_parts"]
    with pytest.raises(InputError, match=r"config\.json: own_parts\.Window .* --import_module own_parts"):
        Pipeline.from_pretrained(name, **hub)
    assert "own_parts" not in sys.modules
    importlib.import_module("own_parts")
    assert Pipeline.from_pretrained(name, **hub).net.mask.size == 5


def test_the_model_card_names_the_modules_to_import(make_pipeline, own_package, tmp_path):
    make_pipeline(mask=own_package.Window(5)).save_pretrained(tmp_path / "own")
    make_pipeline().save_pretrained(tmp_path / "plain")
    own, plain = ((tmp_path / name / "README.md").read_text() for name in ("own", "plain"))
    assert "import own_parts\nfrom lit_transfusion import Pipeline\n" in own and "--import_module own_parts\n" in own
    assert "own_parts" not in plain and "import_module" not in plain


@pytest.mark.parametrize("part", ["patcher", "mask", "noise", "codec"])
@pytest.mark.parametrize(
    "class_path", ["os.system", "lit_transfusion.serialization.build", "lit_transfusion.serialization.T"]
)
def test_only_parts_are_called_even_if_more_is_imported(exported, put_on_hub, part, class_path):
    change_config(exported, **{part: {"class_path": class_path, "init_args": {}}})
    with pytest.raises(InputError, match=f"{class_path} is not a "):
        Pipeline.from_pretrained("me/shapes", **put_on_hub(exported))


# Invalid folders


def test_a_run_is_not_an_exported_model(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(InputError, match=r"no config\.json"):
        Pipeline.from_pretrained(tmp_path)
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    with pytest.raises(InputError, match=r"no config\.json.*checkpoints/last\.ckpt"):
        Pipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.model"])
def test_a_file_that_is_missing_is_named(exported, file):
    (exported / file).unlink()
    with pytest.raises(InputError, match=file):
        Pipeline.from_pretrained(exported)


@pytest.mark.parametrize("length", [0, 5, 1000, -1])
def test_truncated_weights(exported, length):
    weights = exported / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:length])
    with pytest.raises(InputError, match=r"model/model\.safetensors cannot be read \(") as error:
        Pipeline.from_pretrained(exported)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("change", ["missing", "unexpected", "another shape"])
def test_weights_that_do_not_match(exported, change):
    weights = load_file(exported / "model.safetensors")
    weights["head.other" if change == "unexpected" else "head.weight"] = torch.zeros(2, 2)
    if change == "missing":
        del weights["head.weight"]
    save_file(weights, exported / "model.safetensors")
    with pytest.raises(InputError, match=r"model\.safetensors .*config\.json.*head") as error:
        Pipeline.from_pretrained(exported)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["{", "[]", "3", "{}", '{"codec": 3}', '{"model_type": "llama"}', "\udcff"])
def test_a_config_of_something_else(exported, content):
    (exported / "config.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=r"config\.json (is not valid JSON|does not describe)") as error:
        Pipeline.from_pretrained(exported)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"patcher": "linear"}, "'linear' .*Patcher"),
        ({"mask": {"class_path": "lit_transfusion.model.Causal", "init_args": {"size": 3}}}, "Causal .*size"),
        ({"size": 3}, "TransformerConfig "),
        ({"size": {"dim": 64, "n_layers": 1, "n_heads": 2}}, ".*dim.* 32.* 64"),
    ],
)
def test_an_invalid_config(exported, changes, text):
    change_config(exported, **changes)
    with pytest.raises(InputError, match=rf"config\.json: {text}"):
        Pipeline.from_pretrained(exported)


def test_a_folder_has_only_the_exported_weights(exported):
    with pytest.raises(InputError, match=r"ema .*--weights raw"):
        Pipeline.from_pretrained(exported, ema=False)


def test_a_damaged_tokenizer(exported):
    (exported / "tokenizer.model").write_bytes(b"none")
    with pytest.raises(InputError, match=r"tokenizer\.model .*SentencePiece"):
        Pipeline.from_pretrained(exported)


# What is imported


def test_loading_a_model_does_not_import_lightning(exported, make_pipeline, save_checkpoint, tmp_path):
    save_checkpoint(tmp_path / "run.ckpt", make_pipeline())
    code = """if True:
        import sys
        from lit_transfusion import Pipeline
        for path in sys.argv[1:]:
            Pipeline.from_pretrained(path)
        assert not {"lightning", "pytorch_lightning", "jsonargparse"} & set(sys.modules)
    """
    done = subprocess.run([sys.executable, "-c", code, exported, tmp_path / "run.ckpt"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
