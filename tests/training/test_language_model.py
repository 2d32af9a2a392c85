"""Starting from a language model: against transformers, which writes the checkpoints, and what stays frozen."""

import contextlib
import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from single_shape import run
from small_run import REPOSITORY, checkpoint

from lit_transfusion import cli, hub
from lit_transfusion.config.lightning import parts_of
from lit_transfusion.data.tokenizer import Tokenizer
from lit_transfusion.errors import InputError
from lit_transfusion.generation.pipeline import Pipeline
from lit_transfusion.model import TransformerConfig
from lit_transfusion.training.language_model import find_language_model

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

IDS = 262  # of the tokenizer
GQA = {"num_key_value_heads": 2, "rms_norm_eps": 1e-3}
TIED = {"tie_word_embeddings": True, "num_key_value_heads": 1, "vocab_size": IDS + 9}  # rows of padding
MORE_IDS = {"vocab_size": IDS - 1, "rope_theta": 300.0}  # the last token was added, without a row


def write(folder: Path, sharded: bool = False, **changes) -> Path:
    """Write a random language model and its tokenizer."""
    torch.manual_seed(0)
    options = {"vocab_size": IDS, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2}
    options |= {"num_attention_heads": 4, "initializer_range": 0.3}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**options | changes)).eval()
    for name, weight in model.named_parameters():
        if "norm" in name:  # they are ones; other values show that they are used
            torch.nn.init.uniform_(weight, 0.5, 1.5)
    model.save_pretrained(folder, max_shard_size="30KB" if sharded else "1GB")
    assert (folder / "model.safetensors.index.json").exists() == sharded
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=IDS - 1, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["a small red circle", "a large blue square"], trainer)
    tokenizer.add_tokens(["circle"])
    assert tokenizer.get_vocab_size() == IDS
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"bos_token": "<|end|>", "eos_token": "<|end|>"}')
    return folder


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write(tmp_path_factory.mktemp("written"), **GQA)


@pytest.fixture
def folder(written, tmp_path):
    """A copy of a language model, which a test can change."""
    return shutil.copytree(written, tmp_path / "lm")


@pytest.fixture(scope="module")
def tokenizer(written):
    """The tokenizer of the modules and batches of conftest.py."""
    return Tokenizer.from_file(str(written))


@pytest.fixture
def start(make_module):
    """Makes a module that starts from a language model, with its size."""

    def start(folder: Path, modality_weights: str = "all", **options):
        size = TransformerConfig(**find_language_model(str(folder)).size, modality_weights=modality_weights)
        return make_module(dim=size.dim, size=size, init_from=str(folder), **options)

    return start


@torch.no_grad()
def text_logits(net, tokens):
    """(B, L) tokens of one document per row → (B, L, V)."""
    (B, L), ids = tokens.shape, torch.zeros_like(tokens)
    images, timesteps = torch.zeros(0, 3, 4, 4), torch.zeros(0, dtype=torch.int64)
    output = run(net, tokens, torch.arange(L).expand(B, L), ids, ids - 1, images, timesteps, torch.arange(B * L))
    return output.logits.view(B, L, -1)


@torch.no_grad()
@pytest.mark.parametrize("sharded", [False, True], ids=["one file", "sharded"])
@pytest.mark.parametrize(
    ("changes", "modality_weights"), [(GQA, "none"), (TIED, "all"), (MORE_IDS, "ffn")], ids=["gqa", "tied", "more ids"]
)
def test_text_logits_equal_those_of_transformers(start, tmp_path, changes, modality_weights, sharded):
    folder = write(tmp_path, sharded, **changes)
    theirs = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    module = start(folder, modality_weights)
    rows = min(IDS, theirs.config.vocab_size)
    tokens = torch.randint(rows, (3, 20))
    for net in (module.net, module.ema):
        logits = text_logits(net, tokens)
        assert logits.shape[-1] == IDS + 2
        torch.testing.assert_close(logits[..., :rows], theirs(tokens).logits[..., :rows], atol=1e-5, rtol=1e-5)
    weights = dict(module.net.named_parameters())
    own = [name for name in weights if ".patches." in name or "patch_norm" in name]
    assert len(own) == {"none": 0, "ffn": 2 * 3, "all": 2 * 6 + 1}[modality_weights]
    for name in own:  # patches start from copies
        text = name.replace(".patches.", ".text.").replace("patch_norm", "norm")
        assert torch.equal(weights[name], weights[text]) and weights[name] is not weights[text]


def test_weights_in_bf16_are_read_as_float32(start, tmp_path, folder):
    weights = {name: weight.bfloat16() for name, weight in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors")
    head = start(folder).net.head.weight
    assert head.dtype == torch.float32 and torch.equal(head[:IDS], weights["lm_head.weight"].float())


# Rates


@pytest.fixture
def train(make_batch, make_trainer, loader):
    def train(module, steps=20):
        trainer = make_trainer(gradient_clip_val=1.0, max_steps=steps, max_epochs=-1)
        trainer.fit(module, loader(make_batch(seed=0), make_batch(seed=1)))

    return train


def weights_of(net):
    return {name: weight.clone() for name, weight in net.state_dict().items()}


def image_loss(module, batch):
    with torch.no_grad():
        return module.losses(module.net, batch, torch.Generator().manual_seed(5))[0].image.item()


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.Adam])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_frozen_text_stays_bit_equal_while_images_are_learned(start, train, make_batch, tmp_path, tied, optimizer):
    folder = write(tmp_path, **(TIED if tied else MORE_IDS))
    rows = IDS if tied else IDS - 1
    module = start(folder, text_rate=0, optimizer=partial(optimizer, lr=1e-2, weight_decay=0.1))
    tokens = torch.randint(rows, (3, 20))
    before, logits, loss = weights_of(module.net), text_logits(module.net, tokens), image_loss(module, make_batch())
    train(module)
    assert image_loss(module, make_batch()) < 0.99 * loss
    for net in (module.net, module.ema):
        assert torch.equal(text_logits(net, tokens)[..., :rows], logits[..., :rows])
        for name, weight in net.state_dict().items():
            of_text = name.startswith("transformer.") and ".patches." not in name and "patch_norm" not in name
            if name in ("embedding.weight", "head.weight"):
                assert torch.equal(weight[:rows], before[name][:rows])
                assert not torch.equal(weight[rows:], before[name][rows:])  # BOI is learned, and a token without a row
            else:
                assert torch.equal(weight, before[name]) == of_text, name


@pytest.mark.parametrize("modality_weights", ["none", "ffn", "all"])
def test_text_learns_at_its_own_rate(start, folder, modality_weights):
    """The decay of a step, rate times weight decay, shrinks with the rate: weights should stay near the copied ones."""
    module = start(folder, modality_weights, text_rate=0.25, optimizer=partial(torch.optim.AdamW, lr=1e-2))
    groups = module.configure_optimizers()["optimizer"].param_groups
    names = {id(parameter): name for name, parameter in module.net.named_parameters()}
    found = {names[id(parameter)]: group for group in groups for parameter in group["params"]}
    assert len(found) == len(names)
    for name, group in found.items():
        of_text = name.startswith(("embedding.", "head.", "transformer.")) and ".patches." not in name
        of_text &= "patch_norm" not in name
        assert group["initial_lr"] == pytest.approx(2.5e-3 if of_text else 1e-2), name
        assert group["weight_decay"] in (0, 1e-2)
    assert any(".patches." in name for name in found) == (modality_weights != "none")


def test_frozen_text_has_no_gradients_and_no_moments(start, train, folder):
    module = start(folder, text_rate=0)
    train(module, steps=1)
    text = [p for name, p in module.net.named_parameters() if ".text." in name or name == "transformer.norm.weight"]
    assert len(text) == 2 * 6 + 1 and not any(p.requires_grad or p.grad is not None for p in text)
    groups = module.configure_optimizers()["optimizer"].param_groups
    assert not {id(p) for group in groups for p in group["params"]} & set(map(id, text))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text_rate": 0, "modality_weights": "ffn"}, r"text_rate 0 .*modality_weights is ffn; set it to all"),
        ({"text_rate": 0, "modality_weights": "none"}, r"text_rate 0 .*modality_weights is none; set it to all"),
        ({"text_rate": -1}, r"text_rate -1 is negative; use 0"),
        ({"text_rate": 0.5, "base_dim": 16}, r"text_rate and model\.base_dim cannot be combined"),
    ],
)
def test_rates_that_are_not_possible_are_errors(start, folder, options, message):
    with pytest.raises(InputError, match=message):
        start(folder, **options)


def test_a_rate_of_the_text_needs_copied_weights(make_module):
    with pytest.raises(InputError, match=r"text_rate 0.5 needs weights that were copied; set model\.init_from"):
        make_module(text_rate=0.5)


# Errors


def change_config(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "qwen2"}, r"model_type 'qwen2' is not supported; use a model of type 'llama'"),
        ({"attention_bias": True}, r"attention_bias True is not supported"),
        ({"mlp_bias": True}, r"mlp_bias True is not supported"),
        ({"hidden_act": "gelu"}, r"hidden_act 'gelu' is not supported; use a model with hidden_act 'silu'"),
        ({"head_dim": 16}, r"head_dim 16 is not supported; use a model with head_dim 8"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, r"rope_scaling 'llama3' is not supported"),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2}}, r"rope_scaling 'linear'"),
        ({"hidden_size": None}, r"lacks 'hidden_size'"),
    ],
)
def test_model_that_the_net_cannot_express_is_an_error(folder, changes, message):
    change_config(folder, **changes)
    with pytest.raises(InputError, match=rf"model\.init_from: .*lm/config\.json:? .*{message}") as error:
        find_language_model(str(folder))
    assert "\n" not in str(error.value)


def test_older_names_and_defaults_of_the_config(folder):
    change_config(folder, rope_parameters=None, head_dim=None, num_key_value_heads=None, rope_theta=5e5)
    size = find_language_model(str(folder)).size
    assert (size["rope_theta"], size["n_kv_heads"]) == (5e5, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: weights.pop("lm_head.weight"), r"has no weight lm_head\.weight"),
        (lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight"), r"has no weight model\.layers\.1\.mlp\.up"),
        (lambda weights: weights.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(32)}), r"unknown .*bias"),
        (lambda weights: weights.update({"model.norm.weight": torch.ones(3)}), r"norm.* \(3,\) instead of \(32,\)"),
        (lambda weights: weights["model.norm.weight"].fill_(torch.nan), r"model\.norm\.weight .*not finite"),
    ],
)
def test_weights_that_do_not_fit_are_errors(start, folder, change, message):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(InputError, match=message) as error:
        start(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [None, b"", b"none"])
def test_missing_or_damaged_weights_are_errors(start, folder, content):
    if content is None:
        (folder / "model.safetensors").unlink()
    else:
        (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=r"model\.init_from: .*model\.safetensors") as error:
        start(folder)
    assert "\n" not in str(error.value)


def test_another_tokenizer_is_an_error(start, folder):
    with pytest.raises(InputError, match=r"another tokenizer; set data\.tokenizer_model to .*lm"):
        start(folder, tokenizer=Tokenizer.train(["a red circle"], 300))


def test_another_size_is_an_error_with_the_fields_to_use(make_module, folder):
    with pytest.raises(InputError, match=r"model\.size is not that of .*lm .*; use size: {.*}") as error:
        make_module(init_from=str(folder))
    fields = yaml.safe_load(str(error.value).partition("use ")[2])["size"]
    fields["norm_eps"] = float(fields["norm_eps"])  # as jsonargparse reads it
    assert fields == find_language_model(str(folder)).size


# A run


def write_config(folder: Path) -> str:
    """Write the config of a small run from a language model to the working directory."""
    checkpoints = {"dirpath": "${trainer.default_root_dir}/checkpoints", "every_n_train_steps": 2, "save_last": "link"}
    content = {
        "base": str(REPOSITORY / "configs" / "default.yaml"),
        "trainer": {
            "default_root_dir": "run",
            "max_steps": 2,
            "limit_val_batches": 0,
            "enable_progress_bar": False,
            "callbacks": [{"class_path": "ModelCheckpoint", "init_args": checkpoints}, "RunDirectory"],
        },
        "model": {"init_from": str(folder), "text_rate": 0, "size": {"modality_weights": "all"}},
        "data": {
            "source": {"class_path": "Shapes", "init_args": {"num_examples": 20, "num_val_examples": 4}},
            "tokenizer_model": "${model.init_from}",
            "image_size": 16,
            "sequence_length": 96,
            "batch_size": 1,
        },
    }
    Path("lm.yaml").write_text(yaml.safe_dump(content))
    return "lm.yaml"


@pytest.fixture(scope="module")
def trained(written, tmp_path_factory):
    """The folder of a run of two steps, beside its config."""
    folder = tmp_path_factory.mktemp("trained")
    with contextlib.chdir(folder):
        cli.main(["fit", "--config", write_config(written)])
    return folder / "run"


@torch.no_grad()
def test_checkpoint_and_export_have_the_text_of_the_language_model(trained, written, tmp_path):
    """The size follows the language model; nothing of it is needed after the run."""
    saved = yaml.safe_load((trained / "config.yaml").read_text())
    assert saved["model"]["size"]["dim"] == 32 and saved["model"]["size"]["modality_weights"] == "all"
    assert saved["data"]["tokenizer_model"] == "${model.init_from}"
    last, text = trained / "checkpoints" / "last.ckpt", "a small blue circle 🙂"
    cli.main(["export", "--ckpt", str(last), "--output", str(tmp_path / "model")])
    tokenizer = Tokenizer.from_file(str(written))
    tokens = torch.tensor([[tokenizer.bos, *tokenizer.encode(text)]])
    expected = transformers.LlamaForCausalLM.from_pretrained(written)(tokens).logits
    for path in (last, tmp_path / "model"):
        pipeline = Pipeline.from_pretrained(path)
        assert pipeline.tokenizer.model == tokenizer.model
        torch.testing.assert_close(text_logits(pipeline.net, tokens)[..., :IDS], expected, atol=1e-5, rtol=1e-5)
        (picture,) = pipeline.generate(text, images="forced", num_inference_steps=2)
        assert picture.size == (16, 16)
    for folder in (trained, tmp_path / "model"):
        assert Tokenizer.from_file(str(folder)).model == tokenizer.model


def test_a_token_that_is_bos_and_eos_ends_a_text(trained):
    """With equal logits, the first token is the likeliest: EOS, which is BOS, too."""
    pipeline = Pipeline.from_pretrained(trained / "checkpoints" / "last.ckpt")
    assert pipeline.tokenizer.bos == pipeline.tokenizer.eos == 0
    torch.nn.init.zeros_(pipeline.net.head.weight)
    written = pipeline.generate("a red circle", images="never", temperature=0, max_new_tokens=5)
    assert "".join(written) == ""


def test_all_weights_can_be_trained_from_a_checkpoint_with_frozen_text(trained, written, tmp_path):
    """A second run: its config is that of the first, with the checkpoint in the place of the language model."""
    words = ["--model.init_from", str(trained / "checkpoints" / "last.ckpt"), "--data.tokenizer_model", str(trained)]
    words += ["--model.text_rate", "0.1", "--trainer.default_root_dir", str(tmp_path / "next")]
    with contextlib.chdir(tmp_path):
        cli.main(["fit", "--config", str(trained / "config.yaml"), *words])
    weights = checkpoint(tmp_path / "next", 2)["state_dict"]
    theirs = load_file(written / "model.safetensors")["model.embed_tokens.weight"]
    assert not torch.equal(weights["net.embedding.weight"][:IDS], theirs)
    torch.testing.assert_close(weights["net.embedding.weight"][:IDS], theirs, atol=1e-3, rtol=0)


def test_model_on_the_hub_is_downloaded(written, monkeypatch, tmp_path):
    """The files of the hub are copied from a folder; there is no network in the tests."""
    asked = []

    def snapshot_download(name, allow_patterns):
        asked.append((name, allow_patterns))
        return str(written)

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    monkeypatch.chdir(tmp_path)
    model = parts_of(["--config", write_config(written), "--model.init_from", "owner/name"]).model
    embedding = load_file(written / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(model.net.embedding.weight[:IDS], embedding)
    assert {name for name, _ in asked} == {"owner/name"} and asked[0][1] == ["config.json"]


@pytest.mark.slow
def test_resumed_run_equals_an_uninterrupted_one(written, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    fit = ["fit", "--config", write_config(written), "--model.scheduler.total_steps", "4"]
    cli.main([*fit, "--trainer.max_steps", "4", "--trainer.default_root_dir", "whole"])
    cli.main(fit)
    cli.main([*fit, "--trainer.max_steps", "4", "--ckpt_path", "last"])
    whole, parts = (torch.load(f"{name}/checkpoints/last.ckpt", weights_only=True) for name in ("whole", "run"))
    assert (whole["global_step"], parts["global_step"]) == (4, 4)
    torch.testing.assert_close(parts["state_dict"], whole["state_dict"], atol=0, rtol=0)
    torch.testing.assert_close(parts["optimizer_states"], whole["optimizer_states"], atol=0, rtol=0)


@pytest.mark.slow
def test_text_stays_frozen_in_a_sharded_run(fit, tmp_path):
    """With FSDP2 each process has a part of the rows; the weights are those of DDP."""
    folder = str(write(tmp_path / "lm", **GQA))
    options = "--model.init_from", folder, "--data.tokenizer_model", folder, "--model.text_rate", "0"
    options = *options, "--model.size.modality_weights", "all", "--trainer.limit_val_batches", "0"
    ddp = checkpoint(fit("ddp", *options), 3)["state_dict"]
    sharded = checkpoint(fit("sharded", *options, "--trainer.strategy", "fsdp2"), 3)["state_dict"]
    torch.testing.assert_close(sharded, ddp, atol=1e-6, rtol=1e-5)
    theirs = load_file(f"{folder}/model.safetensors")
    for weights in (ddp, sharded):
        for name, ours in (("model.embed_tokens.weight", "embedding.weight"), ("lm_head.weight", "head.weight")):
            assert torch.equal(weights[f"net.{ours}"][:IDS], theirs[name])
