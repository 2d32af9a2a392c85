"""A plan equals what a built net has and what a real step keeps and computes."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from jsonargparse import Namespace
from rich.console import Console
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lit_transfusion import cli
from lit_transfusion.commands.plan.command import Cluster, parse, plan_of
from lit_transfusion.commands.plan.memory import Memory, count
from lit_transfusion.commands.plan.rows import CAPTION, image_row, text_row
from lit_transfusion.commands.plan.tables import tables_of
from lit_transfusion.config.lightning import parts_of
from lit_transfusion.data.grammar import caption_first, text_documents
from lit_transfusion.data.packing import SquarePatches, flatten
from lit_transfusion.data.tokenizer import Tokenizer
from lit_transfusion.diffusion import NextToken
from lit_transfusion.errors import InputError
from lit_transfusion.latents import VQ
from lit_transfusion.model.block_runner import block_runner

CONFIGS = Path(__file__).parents[2] / "configs"
TINY = [
    *("--config", str(CONFIGS / "default.yaml"), "--model.size", "tiny", "--trainer.accelerator", "cpu"),
    *("--data.image_size", "32", "--data.sequence_length", "256", "--data.batch_size", "2", "--data.vocab_size", "400"),
    *("--model.attention", "dense"),
]
ONE_DEVICE = Cluster()
UNET = ["--model.patcher", "UNetPatcher", "--model.patcher.patch_size", "4", "--model.patcher.channels", "32"]


@pytest.fixture(scope="module")
def configs():
    """Parsed once, because this takes longer than a plan."""
    return {"linear": parse(TINY), "unet": parse([*TINY, *UNET])}


@pytest.fixture(scope="module")
def built():
    return {"linear": parts_of(TINY), "unet": parts_of([*TINY, *UNET])}


@pytest.fixture
def planned(configs):
    def planned(patcher: str = "linear", cluster: Cluster = ONE_DEVICE, **changes) -> dict:
        config = configs[patcher].clone()
        for key, value in changes.items():
            config[key.replace("__", ".")] = value
        return plan_of(config, cluster)

    return planned


def step_of(parts, bf16: bool = False):
    """The losses of a real batch, before the backward pass."""
    batch = next(iter(parts.datamodule.train_dataloader()))
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        terms, _ = parts.model.losses(parts.model.net, batch, torch.Generator().manual_seed(0))
    return batch, terms.total


def size_of(tensors) -> int:
    return sum(x.numel() * x.element_size() for x in tensors)


@pytest.mark.parametrize("patcher", ["linear", "unet"])
def test_parameters_equal_those_of_the_built_net(planned, built, patcher):
    found, net = planned(patcher)["parameters"], built[patcher].model.net
    assert sum(found.values()) == count(net.parameters())
    assert found["blocks"] == count(net.transformer.parameters())
    assert found["embedding"] == found["head"] == net.head.weight.numel()
    down = ("proj_in", "down", "time_proj")
    halves = [
        count(p for name, p in net.patcher.named_parameters() if name.startswith(down) == half) for half in (1, 0)
    ]
    assert [found["patcher in"], found["patcher out"]] == halves


def test_tied_head_has_no_parameters(planned):
    assert planned(model__size__tie_embeddings=True)["parameters"]["head"] == 0


def test_memory_of_the_weights_equals_that_of_a_built_run(planned, built):
    found, model = planned()["memory"], built["linear"].model
    step_of(built["linear"])[1].backward()
    optimizer = model.configure_optimizers()["optimizer"]
    optimizer.step()
    assert found["weights"] == size_of(model.net.parameters())
    assert found["average (EMA)"] == size_of(model.ema.parameters())
    assert found["gradients"] == size_of(p.grad for p in model.net.parameters())
    assert found["optimiser state"] == size_of(x for state in optimizer.state.values() for x in state.values())
    assert "average (EMA)" not in planned(model__ema_decay=None)["memory"]


def kept_bytes(parts, bf16: bool = False) -> int:
    """Bytes that the forward pass of a real batch keeps for the backward pass, without weights and logits."""
    weights = {p.untyped_storage().data_ptr() for p in parts.model.parameters()}
    kept = {}

    def keep(x):
        kept[x.untyped_storage().data_ptr()] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        batch, _loss = step_of(parts, bf16)
    logits = len(batch.target_positions) * parts.model.tokenizer.vocab_size * (2 if bf16 else 4)
    return sum(x.untyped_storage().nbytes() for place, x in kept.items() if place not in weights) - logits


def test_activations_are_within_a_tenth_of_those_of_a_real_step(planned, built, monkeypatch):
    none = kept_bytes(built["linear"])
    monkeypatch.setattr(
        built["linear"].model.net.transformer, "run_block", block_runner(activation_checkpointing="full")
    )
    full = kept_bytes(built["linear"])
    assert full < none / 5
    assert planned()["memory"]["activations"] == pytest.approx(none, rel=0.1)
    one_block = (none - full) / 6  # which the backward pass computes again, at one time
    found = planned(model__activation_checkpointing="full")["memory"]["activations"]
    assert found == pytest.approx(full + one_block, rel=0.1)


def test_activations_in_bf16_are_within_a_tenth_of_those_of_a_real_step(planned, built):
    found = planned("unet", trainer__precision="bf16-mixed")["memory"]
    kept = kept_bytes(built["unet"], bf16=True)
    assert found["activations"] + found["bf16 copies of weights"] == pytest.approx(kept, rel=0.1)


def test_operations_are_within_a_tenth_of_those_of_a_real_step(planned, built, monkeypatch):
    monkeypatch.setattr(built["linear"].model.net, "attention", "split")  # `dense` computes hidden pairs, too
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        step_of(built["linear"])[1].backward()
    found = planned(cluster=Cluster(devices=2), trainer__max_steps=7, trainer__accumulate_grad_batches=3)
    assert found["flops_per_step"] == pytest.approx(2 * 3 * counter.get_total_flops(), rel=0.1)
    assert found["tokens_per_step"] == 2 * 3 * 2 * 256
    assert found["flops"] == 7 * found["flops_per_step"] and found["tokens"] == 7 * found["tokens_per_step"]
    assert found["six_n_d"] == 6 * sum(found["parameters"].values()) * found["tokens"]
    assert found["days"] * 86_400 * 2 * 989e12 * 0.4 == pytest.approx(found["flops"])


def test_rows_are_as_those_that_are_packed():
    """A row of documents with a caption and an image, and a row that one text fills."""
    tokenizer = Tokenizer.train(["a red square"], 300)
    document = flatten(caption_first((5,) * CAPTION, torch.zeros(1, 4, 4), tokenizer), tokenizer, SquarePatches(1))
    setup = SimpleNamespace(
        sequence_length=2 * len(document.tokens),
        images_per_example=1,
        patches=16,
        images_are_tokens=False,
        image_share=1,
    )
    row = image_row(setup)
    assert row.document_ids[0].tolist() == [0] * len(document.tokens) + [1] * len(document.tokens)
    assert row.image_ids[0].tolist() == [*document.image_ids, *(i + (i >= 0) for i in document.image_ids)]
    assert row.num_targets == 2 * sum(label >= 0 for label in document.labels) and row.num_images == 2
    (text,) = text_documents((5,) * 10, tokenizer, 10)
    text = flatten(text, tokenizer, SquarePatches(1))
    assert text_row(1, len(text.tokens)).num_targets == sum(label >= 0 for label in text.labels)


def test_fsdp2_divides_what_ddp_repeats(planned):
    cluster = Cluster(devices=4, num_nodes=2)
    ddp, fsdp = (planned(cluster=cluster, trainer__strategy=strategy)["memory"] for strategy in ("ddp", "fsdp2"))
    for kind in ("weights", "gradients", "optimiser state", "average (EMA)"):
        assert fsdp[kind] == ddp[kind] // 8
    assert ddp["buckets of DDP"] == ddp["gradients"] and ddp["activations"] == fsdp["activations"]
    assert fsdp["gathered by FSDP2"] > 0 and "buckets of DDP" not in fsdp


def test_largest_batch_is_the_largest_that_fits():
    memory = Memory({"weights": 50}, {"activations": 9, "logits": 1})
    assert memory.largest_batch(79.9) == 2 and memory.total(2) == 70 and memory.largest_batch(49) == 0


def test_plan_needs_no_data_and_is_printed_as_json_or_tables(capsys, monkeypatch, tmp_path):
    """The paper's 7B model, made small, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    small = ["--model.size", "nano", "--model.patcher.channels", "16", "--model.patcher.num_res_blocks", "1"]
    options = ["--devices", "4", "--memory_gb", "80", "--json", "true"]
    cli.main(["plan", "--config", str(CONFIGS / "paper" / "7B.yaml"), *small, *options])
    found = json.loads(capsys.readouterr().out)
    assert found["devices"] == 128 and found["tokens_per_step"] == 128 * 2 * 4096
    assert found["image_share"] == 0.5 and found["assumed_latents"] == [8, 32, 32] and not list(tmp_path.iterdir())
    console = Console(width=200)
    with console.capture() as capture:
        console.print(*tables_of(found))
    for text in (
        "patcher in",
        "gathered by FSDP2",
        "fsdp2 over 128",
        "largest batch_size in 80 GB",
        "6 N D",
        "1,048,576",
    ):
        assert text in capture.get()
    assert "batch_size 2 needs no activation checkpointing" in capture.get()


@pytest.mark.parametrize(
    "option", [{"mfu": 0.0}, {"mfu": 1.5}, {"devices": 0}, {"num_nodes": -1}, {"memory_gb": -1.0}, {"peak_tflops": 0.0}]
)
def test_invalid_option_is_an_error(option):
    ((name, value),) = option.items()
    with pytest.raises(InputError, match=f"^--{name} {value} is invalid"):
        Cluster(**option)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"trainer__precision": "64-true"}, "trainer.precision 64-true .*; use 32-true or bf16-mixed"),
        ({"trainer__max_steps": 0}, "trainer.max_steps 0"),
        ({"model__optimizer": Namespace(class_path="torch.optim.Adafactor")}, "Adafactor .* use another one"),
        (
            {"data__codec": Namespace(class_path=f"{VQ.__module__}.VQ", init_args={"path": "none"})},
            "none is not a folder",
        ),
        ({"model__noise": Namespace(class_path=f"{NextToken.__module__}.NextToken")}, "NextToken"),
        ({"data__sequence_length": 60}, "data.sequence_length 60 .* at least 69"),
        ({"data__tokenizer_model": "none.model"}, "none.model not found"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_planned_is_an_error(planned, changes, text):
    with pytest.raises(InputError, match=text):
        planned(**changes)
