"""The command `generate`."""

import functools
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from slow_decoder import SlowDecoder

from lit_transfusion import cli
from lit_transfusion.data.images import read_image
from lit_transfusion.diffusion import DDPM
from lit_transfusion.generation import open_pipeline as open_pipeline_module
from lit_transfusion.generation.engine import draw
from lit_transfusion.generation.pictures import to_pil
from lit_transfusion.generation.pipeline import KEY
from lit_transfusion.generation.prompts import prompt_document
from lit_transfusion.generation.settings import Sampling

FAST = ["--num_inference_steps", "2", "--max_new_tokens", "3"]


@pytest.fixture
def pipeline(make_pipeline):
    return make_pipeline(noise=DDPM(prediction_type="sample"))


@pytest.fixture
def run(pipeline, tmp_path, monkeypatch, capsys):
    """Runs the command in a directory with a checkpoint and a picture; returns the lines that it prints."""
    monkeypatch.chdir(tmp_path)
    weights = {f"net.{name}": weight for name, weight in pipeline.net.state_dict().items()}
    torch.save({"state_dict": weights, KEY: pipeline.describe()}, "run.ckpt")
    to_pil(torch.rand(3, 4, 4) * 2 - 1).save("given.png")

    def run(*arguments):
        cli.main(["generate", "--ckpt", "run.ckpt", *FAST, *arguments])
        return capsys.readouterr().out.splitlines()

    return run


@pytest.fixture
def error_of(run, capsys):
    def error_of(*arguments):
        with pytest.raises(SystemExit) as caught:
            run(*arguments)
        assert caught.value.code == 2
        lines = capsys.readouterr().err.strip().splitlines()
        return lines[-1]

    return error_of


def samples(folder="out"):
    with open(f"{folder}/samples.json") as file:
        return json.load(file)["samples"]


def test_prompts_are_drawn_into_one_picture(run):
    assert run("--prompt", "a red circle", "--prompt", "two: blue", "--num_images", "2") == ["out.png"]
    assert Image.open("out.png").size[0] > 4 * 112


def test_a_directory_holds_everything(run, pipeline):
    """Each picture equals that of the API, at its original size, and samples.json records how it was drawn."""
    printed = run("--prompt", "two", "--prompt", "a red circle", "--num_images", "2", "--seed", "7", "--output", "out")
    assert printed == ["out/grid.png", "out/samples.json"]
    prompts = ["two", "two", "a red circle", "a red circle"]
    drawn = draw(pipeline, prompts, Sampling(num_inference_steps=2, seed=7))
    for i, sample in enumerate(samples()):
        assert (sample["prompt"], sample["seed"], sample["text"]) == (prompts[i], 7 + i, "[image]")
        assert (sample["stop_reason"], sample["files"]) == ("image limit", [f"{i:04d}.png"])
        torch.testing.assert_close(read_image(f"out/{i:04d}.png", 4), drawn[i], atol=0.01, rtol=0)
    with open("out/samples.json") as file:
        record = json.load(file)
    assert record["ckpt"] == "run.ckpt" and record["settings"]["num_inference_steps"] == 2


def test_batches_change_nothing(run, tmp_path):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "two", "seed": 40}\n{"prompt": "on white"}\n{"prompt": "a"}\n')
    run("--prompts", "prompts.jsonl", "--output", "one", "--batch_size", "1")
    run("--prompts", "prompts.jsonl", "--output", "all")
    assert samples("one") == samples("all")
    assert [sample["seed"] for sample in samples("all")] == [40, 1, 2]
    for i in range(3):
        torch.testing.assert_close(
            read_image(f"one/{i:04d}.png", 4), read_image(f"all/{i:04d}.png", 4), atol=0.01, rtol=0
        )


def test_a_picture_is_described(run):
    """The caption is printed, and also written if the output is a directory."""
    text = run("--image", "given.png")
    assert len(text) == 1
    described = run("--image", "given.png", "--output", "out")
    assert described == [*text, "out/samples.json"]
    assert samples()[0]["text"] == text[0] and samples()[0]["files"] == []


def test_an_edit_is_guided_by_its_instruction(run, pipeline):
    assert run("--edit", "given.png", "--instruction", "two", "--output", "out") == ["out/grid.png", "out/samples.json"]
    picture = read_image("given.png", 4)
    with torch.no_grad():
        drawn = SlowDecoder(pipeline, 0).draw(
            prompt_document(pipeline, "two", picture).segments, Sampling(num_inference_steps=2)
        )
    torch.testing.assert_close(read_image("out/0000.png", 4), drawn.clamp(-1, 1), atol=0.01, rtol=0)


def test_guidance_is_the_same_for_forced_and_chosen_images(run, pipeline, script):
    """`--interleave --image` and `--edit` have the same null prompt, the picture without text."""
    run("--edit", "given.png", "--instruction", "two", "--output", "forced")
    script([pipeline.tokenizer.boi, pipeline.tokenizer.eos])
    run("--interleave", "--image", "given.png", "--prompt", "two", "--output", "chosen")
    assert Path("forced/0000.png").read_bytes() == Path("chosen/0000.png").read_bytes()


def test_interleave_lets_the_model_choose(run, pipeline, script):
    boi, eos = pipeline.tokenizer.boi, pipeline.tokenizer.eos
    script([boi, 60, boi, eos], [61, 62, 63])
    word = pipeline.tokenizer.decode
    printed = run("--interleave", "--prompt", "two", "--num_images", "2", "--max_images", "2", "--output", "out")
    assert printed == [
        f"two [image] {word([60])} [image]",
        "(stopped by: end of text)",
        f"two {word([61, 62, 63])}",
        "(stopped by: token limit; the model began no image)",
        "out/grid.png",
        "out/samples.json",
    ]
    assert [sample["files"] for sample in samples()] == [["0000.png", "0000_1.png"], []]


def test_contact_sheet_shows_denoising(run):
    assert run("--prompt", "two", "--contact_sheet", "--num_images", "3")[-1] == "out_denoising.png"
    few, more = (
        Image.open("out_denoising.png"),
        run("--prompt", "two", "--contact_sheet", "--num_inference_steps", "30"),
    )
    assert Image.open(more[-1]).width > 3 * few.width and Image.open(more[-1]).height < few.height / 2


@pytest.mark.parametrize(
    ("option", "tolerance"),
    [pytest.param(["--compile", "true"], 0.01, marks=pytest.mark.slow), (["--dtype", "bfloat16"], 0.1)],
)
def test_compiled_and_bf16_pictures_are_the_same(run, monkeypatch, option, tolerance):
    """Tolerances are for the range [-1, 1]; 0.01 is one step of the 8-bit file."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    monkeypatch.setattr(open_pipeline_module, "has_bf16", lambda device: True)
    sample = ["--prompt", "a red circle", "--num_inference_steps", "4"]
    run(*sample, "--output", "plain")
    run(*sample, *option, "--output", "other")
    plain, other = (read_image(f"{folder}/0000.png", 4) for folder in ("plain", "other"))
    torch.testing.assert_close(other, plain, atol=tolerance, rtol=0)
    assert plain.std() > 0.1


@pytest.mark.parametrize("kind", ["--prompt", "--prompts", "--instruction", "--negative_prompt"])
def test_a_typed_prompt_that_is_too_long_is_an_error_before_anything_is_drawn(error_of, pipeline, kind, tmp_path):
    """The error names the prompt, its number of tokens and the limit."""
    text = "two green triangles on white"
    count = len(pipeline.tokenizer.encode(text))
    images = 2 if kind == "--instruction" else 1
    pipeline.sequence_length = 1 + images * 6 + count - 1  # an image takes 4 patches, BOI and EOI
    weights = {f"net.{name}": weight for name, weight in pipeline.net.state_dict().items()}
    torch.save({"state_dict": weights, KEY: pipeline.describe()}, "run.ckpt")
    (tmp_path / "prompts.txt").write_text(f"two\n{text}\n")
    arguments = {
        "--prompt": ["--prompt", "two", "--prompt", text],
        "--prompts": ["--prompts", "prompts.txt"],
        "--instruction": ["--edit", "given.png", "--instruction", text],
        "--negative_prompt": ["--prompt", "two", "--negative_prompt", text],
    }[kind]
    message = error_of(*arguments, "--batch_size", "1", "--output", "out")
    assert kind.strip("-").split("_")[0] in message and f"'{text}'" in message and f"{count} tokens" in message
    assert f"room for {count - 1}" in message and not list(tmp_path.glob("out/*"))


def test_bf16_is_an_error_where_it_is_slow(error_of, monkeypatch):
    monkeypatch.setattr(open_pipeline_module, "has_bf16", lambda device: False)
    message = error_of("--prompt", "two", "--device", "cpu", "--dtype", "bfloat16")
    assert "--dtype bfloat16" in message and "cpu" in message and "float32" in message


def test_settings_reach_the_sampler(run):
    arguments = ["--guidance_interval", "[0.2, 0.8]", "--guidance_rescale", "0.5", "--negative_prompt", "white"]
    run("--prompt", "two", "--sampler", "dpm++", "--top_k", "4", "--top_p", "0.9", *arguments, "--output", "out")
    with open("out/samples.json") as file:
        settings = json.load(file)["settings"]
    assert settings["guidance_interval"] == [0.2, 0.8] and settings["negative_prompt"] == "white"
    assert (settings["guidance_rescale"], settings["top_k"], settings["top_p"]) == (0.5, 4, 0.9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--edit", "given.png"], "--instruction TEXT"),
        (["--edit", "given.png", "--instruction", "a", "--prompt", "b"], "--edit and --prompt "),
        (["--prompt", "a", "--image", "given.png"], "add --interleave"),
        (["--prompt", "a", "--prompts", "b"], "--prompt and --prompts"),
        (["--image", "given.png", "--contact_sheet"], "--contact_sheet "),
        (["--prompt", "a", "--batch_size", "0"], "batch_size 0 "),
        (["--prompt", "a", "--device", "abacus"], "--device abacus: "),
        (["--prompt", "a", "--output", "run.ckpt/out.png"], "--output run.ckpt/out.png cannot be written: File exists"),
        (["--prompt", "a", "--guidance_interval", "[0.5, 0.1]"], "guidance_interval 0.5, 0.1 "),
        (["--image", "large.png"], "picture large.png: "),
        (["--image", "none.png"], "picture none.png not found"),
    ],
)
def test_errors_are_one_line(error_of, tmp_path, arguments, message):
    if "large.png" in arguments:
        Image.new("1", (10_000, 10_000)).save(tmp_path / "large.png")
    assert message in error_of(*arguments)


@pytest.mark.parametrize("part", ["codec", "tokenizer", "state_dict", "head"])
def test_a_checkpoint_without_a_part_is_an_error(run, error_of, part):
    checkpoint = torch.load("run.ckpt", weights_only=True)
    for holder in (checkpoint, checkpoint[KEY]):
        holder.pop(part, None)
    checkpoint.get("state_dict", {}).pop("net.head.weight" if part == "head" else part, None)
    torch.save(checkpoint, "run.ckpt")
    assert "run.ckpt" in (message := error_of("--prompt", "a")) and part in message
