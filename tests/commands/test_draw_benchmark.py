"""The command `draw_benchmark`: the files for public scorers, and runs that are interrupted and resumed."""

import json
import os
import re
from pathlib import Path

import pytest
import torch

from lit_transfusion import cli
from lit_transfusion.commands.benchmark_file import read_benchmark
from lit_transfusion.commands.draw_benchmark import fingerprint, part_of
from lit_transfusion.data.images import read_image
from lit_transfusion.data.types import Document, TextSegment
from lit_transfusion.diffusion import DDPM
from lit_transfusion.errors import InputError
from lit_transfusion.generation.engine import draw, draw_after
from lit_transfusion.generation.settings import Sampling

# From the repository of GenEval; the second excludes one object more than it includes.
GENEVAL = [
    '{"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"}',
    '{"tag": "counting", "include": [{"class": "clock", "count": 2}], "exclude": [{"class": "clock", "count": 3}], '
    '"prompt": "a photo of two clocks"}',
    '{"tag": "position", "include": [{"class": "dog", "count": 1}, {"class": "tie", "count": 1, "position": '
    '["right of", 0]}], "prompt": "a photo of a tie right of a dog"}',
]
PROMPTS = ["a photo of a bench", "a photo of two clocks", "a photo of a tie right of a dog"]
COCO = {
    "info": {"year": 2014},
    "images": [{"id": 42 + i, "file_name": f"COCO_val2014_{42 + i:012d}.jpg"} for i in range(5)],
    "annotations": [
        {"image_id": 42 + i, "id": 100 + 5 * i + j, "caption": f"caption {j} of picture {i}.\n"}
        for j in range(3)
        for i in range(5)
    ],
}


@pytest.fixture
def pipeline(make_pipeline):
    return make_pipeline(noise=DDPM(prediction_type="sample"))


@pytest.fixture
def run(pipeline, save_checkpoint, tmp_path, monkeypatch, capsys):
    """Runs the command in a directory with a checkpoint and both files; returns the last line that it prints."""
    monkeypatch.chdir(tmp_path)
    save_checkpoint(tmp_path / "run.ckpt", pipeline)
    Path("geneval.jsonl").write_text("\n".join(GENEVAL) + "\n")
    Path("coco.json").write_text(json.dumps(COCO))

    def run(prompts, *arguments, ckpt="run.ckpt", steps="2"):
        given = ["--ckpt", ckpt, "--prompts", prompts, "--output", "out", "--num_inference_steps", steps]
        cli.main(["draw_benchmark", *given, *arguments])
        return capsys.readouterr().out.splitlines()[-1]

    return run


@pytest.fixture
def error_of(run, capsys):
    def error_of(*arguments, **options):
        with pytest.raises(SystemExit) as caught:
            run(*arguments, **options)
        assert caught.value.code == 2
        return capsys.readouterr().err.strip().splitlines()[-1]

    return error_of


def files(folder="out"):
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file())


def contents(folder="out"):
    return {path: Path(folder, path).read_bytes() for path in files(folder)}


# Layouts


def test_geneval_layout(run, pipeline):
    assert run("geneval.jsonl", "--num_samples", "2", "--seed", "7") == "out: 6 of 6 pictures, 6 of them drawn now"
    found = {}
    for folder in Path("out").iterdir():  # as evaluate_images.py of GenEval reads them
        if not folder.is_dir() or not folder.name.isdigit():
            continue
        with open(folder / "metadata.jsonl") as file:
            metadata = json.load(file)
        for sample in (folder / "samples").iterdir():
            if re.match(r"\d+\.png", sample.name):
                found[int(folder.name), int(sample.stem)] = metadata, sample
    assert sorted(found) == [(i, j) for i in range(3) for j in range(2)]
    drawn = draw(pipeline, [p for p in PROMPTS for _ in "ab"], Sampling(num_inference_steps=2, seed=7))
    for (i, j), (metadata, sample) in found.items():
        assert metadata == json.loads(GENEVAL[i])
        torch.testing.assert_close(read_image(str(sample), 4), drawn[2 * i + j], atol=0.01, rtol=0)
    assert not torch.allclose(drawn[0], drawn[1])


def test_geneval_has_four_pictures_of_each_prompt(run):
    assert run("geneval.jsonl").startswith("out: 12 of 12")
    assert "00002/samples/00003.png" in files()


def test_coco_is_a_flat_folder_and_a_list_of_captions(run, pipeline):
    assert run("coco.json").startswith("out: 5 of 5 pictures")
    entries = [json.loads(line) for line in Path("out/captions.jsonl").read_text().splitlines()]
    assert files("out/pictures") == [f"{42 + i:012d}.png" for i in range(5)] == sorted(e["file"] for e in entries)
    assert files() == ["captions.jsonl", *(f"pictures/{path}" for path in files("out/pictures")), "settings.json"]
    truth = {entry["id"]: entry for entry in COCO["annotations"]}
    for entry in entries:
        assert (entry["image_id"], entry["caption"] + "\n") == (
            truth[entry["id"]]["image_id"],
            truth[entry["id"]]["caption"],
        )
    drawn = draw(pipeline, [entry["caption"] for entry in entries], Sampling(num_inference_steps=2))
    for entry, picture in zip(entries, drawn, strict=True):
        torch.testing.assert_close(read_image(f"out/pictures/{entry['file']}", 4), picture, atol=0.01, rtol=0)


def test_coco_takes_other_captions_with_another_seed_and_fewer_are_the_first_of_more(run):
    def orders(*arguments):
        return read_benchmark("coco.json", *arguments).orders

    assert orders(None, 0) == orders(5, 0) and orders(2, 0) == orders(5, 0)[:2]
    chosen = [orders(None, seed) for seed in range(30)]
    assert {order.prompt for some in chosen for order in some} == {a["caption"].strip() for a in COCO["annotations"]}
    assert len({some[0].path for some in chosen}) == 5


def test_coco_draws_30000_pictures(tmp_path):
    annotations = [{"image_id": i // 2, "id": i, "caption": "a"} for i in range(2 * 30_005)]
    (tmp_path / "coco.json").write_text(json.dumps({"annotations": annotations}))
    orders = read_benchmark(str(tmp_path / "coco.json"), None, 0).orders
    assert len({order.path for order in orders}) == len(orders) == 30_000


# Resuming


def test_shards_and_batches_draw_the_same(run):
    run("geneval.jsonl", "--batch_size", "5")
    Path("out").rename("whole")
    for shard, there in (("2/3", 4), ("3/3", 8), ("1/3", 12)):
        printed = run("geneval.jsonl", "--batch_size", "2", "--shard", shard)
        assert printed == f"out: {there} of 12 pictures, 4 of them drawn now"
    assert files() == files("whole")
    for path in files():
        if path.endswith(".png"):
            torch.testing.assert_close(read_image(f"out/{path}", 4), read_image(f"whole/{path}", 4), atol=0.01, rtol=0)
        else:
            assert contents()[path] == contents("whole")[path]


@pytest.mark.parametrize("shard", ["0/2", "3/2", "2", "a/b", "1/0", "-1/2"])
def test_invalid_shard(shard):
    with pytest.raises(InputError, match=re.escape(f"--shard {shard} ") + ".*i/n"):
        part_of(shard)


def test_an_interrupted_run_resumes(run, monkeypatch):
    """After a kill during a write, no partial file is named like a picture, and only missing pictures are drawn."""
    run("geneval.jsonl")
    Path("out").rename("whole")
    real, calls, partial = os.fsync, [], []

    def dying(handle):
        calls.append(handle)
        if len(calls) == 15:  # of settings, three lines of metadata, three pictures and their folders; then a picture
            partial.extend(path.name for path in Path("out").rglob("*.partial"))
            raise KeyboardInterrupt
        real(handle)

    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="130"):
        patch.setattr(os, "fsync", dying)
        run("geneval.jsonl")
    pictures = [path for path in files() if path.endswith(".png")]
    assert len(pictures) == 3
    assert len(partial) == 1 and partial[0].startswith(".")
    before = {path: Path("out", path).stat().st_mtime_ns for path in pictures}
    assert run("geneval.jsonl") == "out: 12 of 12 pictures, 9 of them drawn now"
    assert before == {path: Path("out", path).stat().st_mtime_ns for path in pictures}
    assert contents() == contents("whole")
    assert run("geneval.jsonl") == "out: 12 of 12 pictures, 0 of them drawn now"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--guidance_scale", "5"], "guidance_scale 3.0, not 5.0"),
        (["--seed", "1"], "seed 0, not 1"),
        (["--num_samples", "2"], "num_samples None, not 2"),
    ],
)
def test_a_folder_of_other_settings_is_an_error(run, error_of, arguments, message):
    run("geneval.jsonl")
    before = contents()
    error = error_of("geneval.jsonl", *arguments)
    assert message in error and "--output out" in error and "new folder" in error
    assert contents() == before


def test_a_folder_of_other_prompts_is_an_error(run, error_of):
    run("geneval.jsonl")
    error = error_of("coco.json")
    assert "--output out" in error and "other prompts" in error
    Path("geneval.jsonl").write_text("\n".join(GENEVAL).replace("bench", "couch"))
    assert "other prompts" in error_of("geneval.jsonl")


def test_a_folder_of_another_model_is_an_error(run, error_of, pipeline, save_checkpoint, tmp_path):
    """Only the weights count: not the name, and not whether they are from a checkpoint or a folder."""
    save_checkpoint(tmp_path / "averaged.ckpt", pipeline, averages=0.25)
    pipeline.save_pretrained(tmp_path / "exported")
    run("geneval.jsonl")
    assert run("geneval.jsonl", ckpt="exported").endswith(" 0 of them drawn now")
    assert run("geneval.jsonl", "--ema", "false", ckpt="averaged.ckpt").endswith(" 0 of them drawn now")
    error = error_of("geneval.jsonl", ckpt="averaged.ckpt")
    assert "another model" in error and "run.ckpt" in error


def test_a_folder_of_something_else_is_an_error(error_of):
    Path("out").mkdir()
    Path("out/thesis.tex").write_text("chapter 1")
    error = error_of("geneval.jsonl")
    assert "--output out" in error and "settings.json" in error and "new folder" in error
    Path("out/settings.json").write_text("{")
    assert "out/settings.json cannot be read" in error_of("geneval.jsonl")
    assert files() == ["settings.json", "thesis.tex"]


@pytest.mark.parametrize("patcher", ["linear", "unet"])
def test_fingerprint_depends_on_all_weights_and_parts(make_pipeline, patcher):
    pipeline = make_pipeline(patcher)
    name = fingerprint(pipeline)
    assert fingerprint(make_pipeline(patcher)) == name
    for weight in pipeline.net.state_dict().values():
        before = weight.clone()
        weight.view(-1)[0] += 1e-3
        assert fingerprint(pipeline) != name
        weight.copy_(before)
    assert fingerprint(make_pipeline(patcher, noise=DDPM(prediction_type="sample"))) != name


# Errors


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a red circle\na blue square\n", "metadata of GenEval"),
        ('{"prompt": "two"}\n', "metadata of GenEval"),
        ('{"images": [], "annotations": [{"image', "metadata of GenEval"),
        ("[1, 2]", "metadata of GenEval"),
        ("", "no prompts"),
        (GENEVAL[0] + "\n\n" + GENEVAL[1][:-9] + "\n", "line 3 "),
        ('{"annotations": []}', "captions of 0 images"),
        ('{"annotations": {"image_id": 1}}', "annotation 0 "),
        ('{"annotations": [{"image_id": 1, "id": 2, "caption": "a"}, {"image_id": 1}]}', "annotation 1 "),
    ],
)
def test_other_files_are_an_error(error_of, tmp_path, text, message):
    (tmp_path / "prompts.txt").write_text(text)
    assert message in (error := error_of("prompts.txt")) and "prompts prompts.txt" in error
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("prompts", "arguments", "message"),
    [
        ("coco.json", ["--num_samples", "6"], "num_samples 6 "),
        ("coco.json", ["--num_samples", "0"], "num_samples 0 "),
        ("geneval.jsonl", ["--num_samples", "0"], "num_samples 0 "),
        ("geneval.jsonl", ["--batch_size", "0"], "batch_size 0 "),
        ("geneval.jsonl", ["--shard", "5/4"], "--shard 5/4 "),
        ("geneval.jsonl", ["--num_inference_steps", "2000"], "num_inference_steps 2000"),
        ("none.jsonl", [], "prompts none.jsonl "),
        ("run.ckpt", [], "prompts run.ckpt "),
        ("geneval.jsonl", ["--output", "run.ckpt/out"], "cannot be written: "),
    ],
)
def test_invalid_options_are_an_error_before_anything_is_written(error_of, prompts, arguments, message):
    assert message in error_of(prompts, *arguments)
    assert not Path("out").exists()


def test_a_prompt_that_is_too_long_is_an_error_before_anything_is_drawn(
    make_pipeline, save_checkpoint, error_of, tmp_path
):
    pipeline = make_pipeline()
    pipeline.sequence_length = 20
    save_checkpoint(tmp_path / "short.ckpt", pipeline)
    Path("geneval.jsonl").write_text('{"tag": "counting", "include": [], "prompt": "two"}\n' + GENEVAL[2])
    error = error_of("geneval.jsonl", ckpt="short.ckpt")
    tokens = len(pipeline.tokenizer.encode(PROMPTS[2]))
    for part in ("prompts geneval.jsonl", PROMPTS[2], f"{tokens} tokens", "room for 13"):
        assert part in error
    assert not Path("out").exists()


def test_captions_of_coco_are_cut_as_in_training(make_pipeline, save_checkpoint, run, tmp_path):
    """Captions are data, which the user cannot fix, so a long one is not an error."""
    pipeline = make_pipeline(noise=DDPM(prediction_type="sample"))
    pipeline.sequence_length = 20  # 8 of them are BOS, EOS, BOI, four patches and EOI
    save_checkpoint(tmp_path / "short.ckpt", pipeline)
    annotations = [{"image_id": i, "id": i, "caption": text} for i, text in enumerate(["two", PROMPTS[2]])]
    Path("coco.json").write_text(json.dumps({"annotations": annotations}))
    assert run("coco.json", ckpt="short.ckpt") == "out: 2 of 2 pictures, 2 of them drawn now"
    order = [json.loads(line)["image_id"] for line in Path("out/captions.jsonl").read_text().splitlines()].index(1)
    prompt = Document((TextSegment((pipeline.tokenizer.bos, *pipeline.tokenizer.encode(PROMPTS[2])[:12])),))
    drawn = draw_after(pipeline, [prompt], Sampling(num_inference_steps=2), None, [order])
    torch.testing.assert_close(read_image(f"out/pictures/{1:012d}.png", 4), drawn[0].clamp(-1, 1), atol=0.01, rtol=0)
