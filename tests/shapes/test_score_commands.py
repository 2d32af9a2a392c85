"""The commands `score_edits` and `score_shapes` on an untrained net, and their errors."""

import pytest
import torch
from PIL import Image

from lit_transfusion.errors import InputError
from lit_transfusion.generation.pipeline import KEY, Pipeline
from lit_transfusion.latents import Pixels
from lit_transfusion.model import Bidirectional, LinearPatcher, TransformerConfig, Transfusion
from lit_transfusion.shapes.score_edits import score_edits, summary
from lit_transfusion.shapes.score_shapes import baselines, score_shapes
from lit_transfusion.shapes.scorer import EditScore
from lit_transfusion.shapes.source import single_object_prompts


def test_command_scores_each_kind_and_saves_a_grid(make_pipeline, tmp_path, capsys):
    small = make_pipeline()
    size = TransformerConfig(dim=32, n_layers=1, n_heads=2)
    net = Transfusion(small.tokenizer.vocab_size, size, LinearPatcher(dim=32, patch_size=8), Bidirectional())
    pipeline = Pipeline(net, small.noise, Pixels(), small.tokenizer, image_size=16)
    weights = {f"net.{name}": weight for name, weight in net.state_dict().items()}
    torch.save({"state_dict": weights, KEY: pipeline.describe()}, tmp_path / "last.ckpt")
    score_edits(str(tmp_path / "last.ckpt"), 10, num_inference_steps=2, output=str(tmp_path / "edits.png"))
    printed = capsys.readouterr().out
    for word in (
        "recolour",
        "reshape",
        "move",
        "add",
        "remove",
        "all",
        "other object unchanged",
        "the unchanged input",
        "noise",
    ):
        assert word in printed
    assert Image.open(tmp_path / "edits.png").width > 900


@pytest.mark.parametrize("score", [score_edits, score_shapes])
@pytest.mark.parametrize("output", ["scored.foo", "scored", "."])
def test_an_output_that_is_not_a_picture_is_an_error_before_anything_is_drawn(score, output):
    with pytest.raises(InputError, match=r"--output .* picture format"):
        score("never-read.ckpt", output=output)


def test_pictures_that_are_not_drawn_for_the_prompts_score_chance():
    scores = baselines(single_object_prompts(48), image_size=24)
    assert scores["noise"].both == 0 and scores["noise"].shape == 0
    chance = scores["random training pictures"]
    assert chance == pytest.approx((1 / 6, 1 / 4, 1 / 24), abs=0.02)  # prompts have all pairs equally often


def test_summary_is_in_per_cent():
    scores = [EditScore(True, True), EditScore(False, True), EditScore(False, True), EditScore(False, False)]
    assert summary(scores) == ("4", "25 %", "75 %")
