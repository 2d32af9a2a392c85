"""Shards with the moments of an autoencoder: what is saved, training on it, and errors."""

import io
import json
import logging
import shutil
import tarfile
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from lit_transfusion import cli
from lit_transfusion.data.datamodule import TransfusionData
from lit_transfusion.data.recipe import Recipe
from lit_transfusion.data.shards import layout
from lit_transfusion.data.shards.open_files import OpenFiles
from lit_transfusion.data.sources import ImageCaptions, Mix, Shards, TextCorpus
from lit_transfusion.data.types import Example, Skipped
from lit_transfusion.diffusion import DDPM
from lit_transfusion.errors import InputError
from lit_transfusion.evaluation.metric import Subject
from lit_transfusion.latents import VAE, Codec, Moments, Pixels, Raw
from lit_transfusion.model import Bidirectional, LinearPatcher, TransformerConfig
from lit_transfusion.prepare import encoding, maker
from lit_transfusion.prepare.command import prepare
from lit_transfusion.shapes.source import Shapes
from lit_transfusion.training.lit_module import LitTransfusion

REPOSITORY = Path(__file__).parents[2]
COUNT, SIZE = 20, 16
SMALL = {"image_size": SIZE, "shard_size": 6, "num_workers": 0}
FLOAT16 = {"rtol": 1e-3, "atol": 1e-4}  # its rounding error


@pytest.fixture(scope="module")
def pictures(make_pictures, tmp_path_factory):
    return make_pictures(tmp_path_factory.mktemp("pictures") / "in", COUNT)


@pytest.fixture(scope="module")
def vae(save_vae, tmp_path_factory):
    return save_vae(tmp_path_factory.mktemp("vae") / "vae")


@pytest.fixture(scope="module")
def codec(vae):
    return VAE(vae)


@pytest.fixture(scope="module")
def prepared(pictures, codec, tmp_path_factory):
    output = tmp_path_factory.mktemp("prepared") / "out"
    prepare([str(pictures)], str(output), codec=codec, **SMALL)
    return output


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def error_of(call):
    """The message of the InputError. It must be one line."""
    with pytest.raises(InputError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def data_of(source, codec, **options):
    options = {"image_size": SIZE, "sequence_length": 80, "batch_size": 2, "vocab_size": 300} | options
    return TransfusionData(source, codec, **options)


# What is saved


@pytest.mark.parametrize("kind", ["AutoencoderKL", "AutoencoderTiny"])
def test_saved_moments_are_those_of_each_picture_and_its_mirror_image(pictures, save_vae, tmp_path, monkeypatch, kind):
    """The codec encodes batches of three, and one picture cannot be used."""
    monkeypatch.setattr(encoding, "MOST_AT_ONCE", 3)
    folder = shutil.copytree(pictures, tmp_path / "in")
    (folder / "3.png").write_bytes(b"no picture")
    codec = VAE(save_vae(tmp_path / "vae", kind))
    prepare([str(folder)], str(tmp_path / "out"), codec=codec, **SMALL, max_skipped=0.1)
    shards = Shards(str(tmp_path / "out"), SIZE)
    pixels = shards.pictures
    assert len(shards) == COUNT - 1
    for i in range(len(shards)):
        example = shards[i]
        assert example.captions == pixels[i].captions
        assert example.image.tensor.dtype == torch.float16 and example.image.tensor.shape == codec.moments_shape(SIZE)
        for kept, picture in (
            (example.image.tensor, pixels[i].image),
            (example.mirror_image.tensor, pixels[i].image.flip(-1)),
        ):
            with torch.no_grad():
                encoded = codec.autoencoder.encode(picture[None])
            expected = encoded.latent_dist.parameters if kind == "AutoencoderKL" else encoded.latents
            torch.testing.assert_close(kept.float(), expected[0], **FLOAT16)
        assert (
            example.mirror_image.tensor - example.image.tensor.flip(-1)
        ).abs().max() > 0.01  # which is another thing


def test_pictures_equal_those_of_the_folder(pictures, prepared):
    expected = ImageCaptions(str(pictures), SIZE)
    expected = {example.captions: example.image for example in (expected[i] for i in range(COUNT))}
    for shards in (Shards(str(prepared), SIZE, latents=False), Shards(str(prepared), SIZE).pictures):
        found = {example.captions: example.image for example in (shards[i] for i in range(COUNT))}
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[captions], expected[captions]) for captions in expected)


def test_tars_have_a_third_member(prepared):
    """The standard library and numpy can read them."""
    rows, moments_rows = np.load(prepared / "index.npy"), np.load(prepared / "moments.npy")
    assert rows.dtype == layout.ROW and len(rows) == len(moments_rows) == COUNT
    shards = Shards(str(prepared), SIZE)
    for i, (row, moments_row) in enumerate(zip(rows, moments_rows, strict=True)):
        with tarfile.open(prepared / f"{row['shard']:05d}.tar", "r:") as tar:
            members = tar.getmembers()
            first = [member.offset_data for member in members].index(row["offset"])
            picture, text, moments = members[first : first + 3]
            stem = picture.name.removesuffix(".webp")
            assert (text.name, moments.name) == (f"{stem}.json", f"{stem}.moments.npy")
            array = np.load(io.BytesIO(tar.extractfile(moments).read()))
            assert moments.size == moments_row["moments_bytes"]
            assert tuple(json.load(tar.extractfile(text))["captions"]) == shards[i].captions
        assert array.dtype == np.float16 and array.shape == (2, 10, 4, 4)
        assert np.array_equal(array[0], shards[i].image.tensor) and np.array_equal(
            array[1], shards[i].mirror_image.tensor
        )


def test_index_names_the_codec(prepared, codec, vae):
    entry = json.loads((prepared / "index.json").read_text())["codec"]
    assert entry == {
        "identity": codec.identity(),
        "class_path": "VAE",
        "init_args": {"path": vae},
        "shape": [2, 10, 4, 4],
    }


def test_example_needs_one_read(prepared, monkeypatch):
    reads, read = [], OpenFiles.read

    def counted(self, path, offset, size):
        reads.append((offset, size))
        return read(self, path, offset, size)

    monkeypatch.setattr(OpenFiles, "read", counted)
    shards = Shards(str(prepared), SIZE)
    (row, moments_row) = shards._shards.rows[5], shards._shards.moments_rows[5]
    assert isinstance(shards[5], Example) and isinstance(shards.pictures[5], Example)
    latents, picture = reads
    assert picture == (row["offset"], layout.span(row))
    assert latents[0] > row["offset"] + row["picture_bytes"]  # without the picture
    assert latents[1] < moments_row["moments_bytes"] + row["json_bytes"] + 3 * layout.BLOCK


def test_flipped_bit_in_the_latents_is_skipped_and_found_by_prepare(pictures, prepared, codec, tmp_path):
    mine = shutil.copytree(prepared, tmp_path / "mine")
    shards = Shards(str(mine), SIZE)
    start, size = layout.moments_place(shards._shards.rows[3], shards._shards.moments_rows[3])
    tar = mine / f"{shards._shards.rows[3]['shard']:05d}.tar"
    content = bytearray(tar.read_bytes())
    content[start + size - 1] ^= 4
    tar.write_bytes(content)
    found = [shards[i] for i in range(COUNT)]
    assert [i for i, example in enumerate(found) if isinstance(example, Skipped)] == [3]
    assert found[3].reason == "damaged in its shard"
    assert isinstance(shards.pictures[3], Example)
    message = error_of(lambda: prepare([str(pictures)], str(mine), codec=codec, **SMALL))
    assert f"{tar.name} has changed; copy it again" in message


def test_folder_without_a_codec_entry_is_read_and_checked(pictures, tmp_path, capsys):
    prepare([str(pictures)], str(tmp_path / "out"), **SMALL)
    index = json.loads((tmp_path / "out" / "index.json").read_text())
    del index["codec"]
    (tmp_path / "out" / "index.json").write_text(json.dumps(index))
    assert Shards(str(tmp_path / "out"), SIZE).encoding is None
    assert Shards(str(tmp_path / "out"), SIZE)[0].image.shape == (3, SIZE, SIZE)
    prepare([str(pictures)], str(tmp_path / "out"), **SMALL)
    assert "already finished" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["index.npy", "moments.npy"])
def test_index_of_another_folder_or_none(prepared, tmp_path, name):
    mine = shutil.copytree(prepared, tmp_path / "mine")
    np.save(mine / name, np.load(mine / name)[:-1])
    assert error_of(lambda: Shards(str(mine), SIZE)).startswith(f"{mine / name} does not belong to")
    (mine / name).unlink()
    assert error_of(lambda: Shards(str(mine), SIZE)).startswith(f"{mine / name} cannot be read")


def test_picture_with_nonfinite_latents_is_skipped(pictures, save_vae, tmp_path):
    codec = VAE(save_vae(tmp_path / "vae"))
    codec.autoencoder.quant_conv.weight.data *= 1e7
    message = error_of(lambda: prepare([str(pictures)], str(tmp_path / "out"), codec=codec, **SMALL))
    assert "float16" in message and str(pictures) in message


# The same result in all circumstances


def test_workers_do_not_change_the_result(pictures, prepared, codec, tmp_path):
    prepare([str(pictures)], str(tmp_path / "out"), codec=codec, **{**SMALL, "num_workers": 2})
    assert contents(tmp_path / "out") == contents(prepared)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_input_error_while_reading_is_one_line(pictures, codec, tmp_path, monkeypatch, num_workers):
    def fail(*_):
        raise InputError("the tar has changed")

    monkeypatch.setattr(maker.ShardMaker, "read", fail)
    options = {"codec": codec, **SMALL, "num_workers": num_workers}
    message = error_of(lambda: prepare([str(pictures)], str(tmp_path / "out"), **options))
    assert message.startswith("the tar has changed; ") and "run the same command again to resume" in message


def test_out_of_memory_is_one_line(pictures, save_vae, tmp_path, monkeypatch):
    codec = VAE(save_vae(tmp_path / "vae"))

    def full(_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\n20 MiB")

    monkeypatch.setattr(codec, "moments", full)
    message = error_of(lambda: prepare([str(pictures)], str(tmp_path / "out"), codec=codec, **SMALL))
    assert "too little free memory to encode 12 images" in message and "CUDA_VISIBLE_DEVICES" in message
    assert "run the same command again to resume" in message
    assert not list((tmp_path / "out").glob("*.tar"))


def test_finished_folder_belongs_to_one_codec_at_any_path(pictures, prepared, vae, save_vae, tmp_path):
    moved = VAE(str(shutil.copytree(vae, tmp_path / "moved")))
    prepare([str(pictures)], str(prepared), codec=moved, **SMALL)  # checks it
    other = VAE(save_vae(tmp_path / "other", seed=1))
    before = contents(prepared)
    message = error_of(lambda: prepare([str(pictures)], str(prepared), codec=other, **SMALL))
    assert f"was made with codec {moved.identity()}, not {other.identity()}" in message
    message = error_of(lambda: prepare([str(pictures)], str(prepared), **SMALL))
    assert f"was made with codec {moved.identity()}, not None" in message
    assert contents(prepared) == before


# Codecs without moments


class Own(Codec):
    latent_channels, downscale = 3, 1

    def encode(self, images, generator=None):
        return images / 2


@pytest.mark.parametrize(
    ("make", "image_size", "expected"),
    [
        (Pixels, SIZE, "--codec Pixels does not change pictures"),
        (Own, SIZE, "--codec Own has no moments to save"),
        (VAE, 18, "image_size 18 is not a multiple of 4"),
    ],
)
def test_codec_that_cannot_be_used(pictures, vae, tmp_path, make, image_size, expected):
    codec = make(vae) if make is VAE else make()
    options = {**SMALL, "image_size": image_size}
    assert expected in error_of(lambda: prepare([str(pictures)], str(tmp_path / "out"), codec=codec, **options))
    assert not (tmp_path / "out").exists()


# Training


@pytest.fixture
def module(codec, tokenizer):
    return LitTransfusion(
        tokenizer,
        codec,
        SIZE,
        LinearPatcher(5, 16, 2),
        Bidirectional(),
        DDPM(),
        partial(torch.optim.AdamW, lr=1e-3),
        partial(torch.optim.lr_scheduler.ConstantLR),
        size=TransformerConfig(dim=16, n_layers=1, n_heads=2, hidden_dim=32),
        ema_decay=None,
    )


def batches(source, codec, tokenizer, count=3, **options):
    data = data_of(source, codec, **options)
    data.tokenizer = tokenizer
    return list(islice(data.train_dataloader(), count))


def test_training_on_saved_latents_equals_encoding_in_training(prepared, codec, tokenizer, module):
    """Documents, noise and losses are equal up to the rounding of float16."""
    kept = batches(Shards(str(prepared), SIZE), codec, tokenizer)
    fresh = batches(Shards(str(prepared), SIZE, latents=False), codec, tokenizer)
    for ours, theirs in zip(kept, fresh, strict=True):
        assert torch.equal(ours.tokens, theirs.tokens) and torch.equal(ours.image_ids, theirs.image_ids)
        (kept,), (fresh,) = ours.image_groups, theirs.image_groups
        assert isinstance(kept.images, Moments) and isinstance(fresh.images, Raw) and len(fresh.at) > 0
        found, expected = (codec.latents(group.images, generator()) for group in (kept, fresh))
        assert found.dtype == torch.float32 and codec.shape_of_latents(kept.images) == found.shape[1:]
        torch.testing.assert_close(found, expected, **FLOAT16)
        assert not torch.allclose(found, codec.latents(kept.images, generator(1)), atol=0.01)
        losses = [module.losses(module.net, batch, generator())[0].total for batch in (ours, theirs)]
        torch.testing.assert_close(*losses, rtol=1e-3, atol=0)


def test_mirrored_documents_contain_the_saved_mirror_image(prepared, codec, tokenizer, module):
    recipe = Recipe(mirror=1.0)
    kept = batches(Shards(str(prepared), SIZE), codec, tokenizer, recipe=recipe)
    fresh = batches(Shards(str(prepared), SIZE, latents=False), codec, tokenizer, recipe=recipe)
    for ours, theirs in zip(kept, fresh, strict=True):
        assert torch.equal(ours.tokens, theirs.tokens)
        (found,), (pictures,) = ours.image_groups, theirs.image_groups
        torch.testing.assert_close(found.images.tensor.float(), codec.moments(pictures.images.tensor), **FLOAT16)


def test_workers_do_not_change_latents(prepared, codec, tokenizer):
    source = Shards(str(prepared), SIZE)
    here, there = (batches(source, codec, tokenizer, num_workers=n) for n in (0, 2))
    torch.testing.assert_close(here, there, rtol=0, atol=0)


def test_codec_of_another_run_is_an_error_with_a_fix(prepared, codec, vae, save_vae, tmp_path):
    source = Shards(str(prepared), SIZE)
    for other in (VAE(save_vae(tmp_path / "other", seed=1)), Pixels()):
        message = error_of(lambda other=other: data_of(source, other))
        assert str(prepared) in message
        assert f"codec {codec.identity()}, but data.codec is {other.identity()};" in message
        assert f"set data.codec to VAE (path={vae}), or data.source.init_args.latents to false" in message
        data_of(Shards(str(prepared), SIZE, latents=False), other)
    mean = VAE(str(shutil.copytree(vae, tmp_path / "moved")), sample_posterior=False)  # the same weights
    data_of(source, mean)


@pytest.fixture
def texts(tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "all.txt").write_text("\n\n".join(f"text number {i}" for i in range(40)))
    return TextCorpus(str(tmp_path / "texts"), documents="block")


def test_mix_contains_latents_and_pixels_and_shows_pixels(prepared, codec, texts, make_pipeline):
    shards = Shards(str(prepared), SIZE, val_fraction=0.3)
    mixed = Mix({"drawn": Shapes(SIZE), "kept": shards}, image_size=SIZE)
    batch = next(iter(data_of(mixed, codec).train_dataloader()))
    assert {type(group.images) for group in batch.image_groups} == {Raw, Moments}
    assert {codec.latents(group.images).shape[1:] for group in batch.image_groups} == {(5, 4, 4)}
    message = error_of(lambda: data_of(mixed, Pixels()))
    assert "or data.source.init_args.sources.kept.init_args.latents to false" in message
    mixed = Mix({"text": texts, "kept": shards}, image_size=SIZE)
    data = data_of(mixed, codec)
    with_images = [batch for batch in islice(data.train_dataloader(), 10) if batch.num_images]
    assert {batch.image_groups[0].images.tensor.shape[1:] for batch in with_images} == {(10, 4, 4)}
    pictures, written = data.val_dataloader()
    assert next(iter(pictures)).image_groups[0].images.tensor.shape[1:] == (10, 4, 4)
    assert next(iter(written)).num_images == 0
    # What is shown, predicted and measured is pixels.
    assert mixed.pictures.split("val")[0].image.shape == (3, SIZE, SIZE)
    assert next(iter(data.predict_dataloader())).images[0].shape == (3, SIZE, SIZE)
    subject = Subject(make_pipeline(), mixed, num_examples=3)
    pictures = torch.stack(subject.pictures)
    assert pictures.shape == (3, 3, SIZE, SIZE) and pictures.dtype == torch.float32


# The command line


def test_prepared_trained_on_shown_predicted_and_measured(pictures, vae, tmp_path, monkeypatch, capsys, caplog):
    monkeypatch.chdir(tmp_path)
    words = ["--input", str(pictures), "--output", "shards", "--image_size", str(SIZE), "--num_workers", "0"]
    cli.main(["prepare", *words, "--codec", "VAE", "--codec.path", vae])
    output = capsys.readouterr().out.strip()
    shown = {"num_samples": 2, "num_inference_steps": 2, "max_new_tokens": 2}
    checkpoints = {"dirpath": "run/checkpoints", "every_n_train_steps": 1, "save_last": "link"}
    callbacks = {
        "ModelCheckpoint": checkpoints,
        "ShowSamples": shown,
        "Throughput": {},
        "WritePredictions": {},
        "RunDirectory": {},
    }
    config = {
        "base": str(REPOSITORY / "configs" / "default.yaml"),
        "trainer": {
            "default_root_dir": "run",
            "max_steps": 2,
            "val_check_interval": 2,
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "callbacks": [{"class_path": name, "init_args": arguments} for name, arguments in callbacks.items()],
        },
        "model": {
            "size": {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32},
            "patcher": {"class_path": "LinearPatcher", "init_args": {"patch_size": 2}},
            "sampling": {"num_inference_steps": 2, "max_new_tokens": 2},
        },
        "data": {"sequence_length": 64, "batch_size": 1, "vocab_size": 300, "recipe": {"mirror": 0.5}},
    }
    Path("small.yaml").write_text(yaml.safe_dump(config))
    options = output.partition("train with ")[2].split()  # as `prepare` advises
    encode, encoded = VAE.moments, []
    monkeypatch.setattr(VAE, "moments", lambda self, images: (encoded.append(len(images)), encode(self, images))[1])
    cli.main(["fit", "--config", "small.yaml", *options, "--data.source.init_args.val_fraction", "0.2"])
    assert encoded and max(encoded) == 1  # those to be described, when they are shown
    assert sorted(path.name for path in Path("run/samples").iterdir()) == [
        f"{name}_000002.png" for name in ("captions", "denoising", "samples")
    ]
    metrics = next(Path("run/metrics").rglob("metrics.csv")).read_text()
    assert "throughput/images_per_second" in metrics and "val/loss_image" in metrics
    with caplog.at_level(logging.INFO):
        cli.main(["predict", "--config", "run/config.yaml", "--ckpt_path", "last"])
    assert "drawn and written: run/predictions" in caplog.messages
    assert Path("run/predictions/drawn_0000.png").exists()
    capsys.readouterr()
    words = ["--ckpt", "run/checkpoints/last.ckpt", "--num_examples", "3", "--num_inference_steps", "2"]
    cli.main(["evaluate", *words, "--metrics", "Perplexity"])
    assert "perplexity" in capsys.readouterr().out


def test_misspelt_or_missing_codec_is_a_one_line_error(pictures, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    words = ["prepare", "--input", str(pictures), "--output", str(tmp_path / "out")]
    for codec, expected in (
        (["VEA"], "there is no class VEA; known: "),
        (["VAE", "--codec.path", "x"], "VAE path 'x'"),
    ):
        with pytest.raises(SystemExit) as caught:
            cli.main([*words, "--codec", *codec])
        message = capsys.readouterr().err.strip()
        assert caught.value.code == 2 and message.startswith("error: ") and "\n" not in message and expected in message
