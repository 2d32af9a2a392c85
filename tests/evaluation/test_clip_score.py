"""The CLIP score of a small CLIP on disk against a step-by-step computation."""

import json
import sys
import time

import pytest
import torch

from lit_transfusion.evaluation.clip_score import CLIPScore
from lit_transfusion.evaluation.metric import Unavailable

LENGTH = 12  # of texts, in tokens
VOCABULARY = [*"abcdefghijklmnopqrstuvwxyz", *(f"{letter}</w>" for letter in "abcdefghijklmnopqrstuvwxyz")]
START, END = len(VOCABULARY), len(VOCABULARY) + 1


@pytest.fixture
def folder(tmp_path):
    """An untrained CLIP for pictures of 16 × 16 pixels, with single letters as tokens, in the layout of a download."""
    transformers = pytest.importorskip("transformers")
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"vocab_size": END + 1, "max_position_embeddings": LENGTH, "bos_token_id": START, "eos_token_id": END}
    config = transformers.CLIPConfig(
        text_config=shape | text,
        vision_config=shape | {"image_size": 16, "patch_size": 8, "initializer_factor": 30.0},
        projection_dim=8,
    )
    torch.manual_seed(0)
    transformers.CLIPModel(config).save_pretrained(tmp_path)
    size = {"height": 16, "width": 16}
    transformers.CLIPImageProcessor(size=size, crop_size=size).save_pretrained(tmp_path)
    tokens = [*VOCABULARY, "<|startoftext|>", "<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": LENGTH}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    return tmp_path


def spell(text):
    """Token ids of a text. The last is always END, also if the text is cut."""
    ids = []
    for word in text.split():
        ids += [VOCABULARY.index(letter) for letter in word[:-1]] + [VOCABULARY.index(word[-1] + "</w>")]
    return [START, *ids[: LENGTH - 2], END]


@torch.no_grad()
def reference_cosine(folder, image, text):
    from transformers import CLIPModel

    clip = CLIPModel.from_pretrained(folder).eval()
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    levels = ((image.clamp(-1, 1) + 1) / 2 * 255).round() / 255
    seen = clip.vision_model(((levels - mean) / std)[None]).pooler_output
    read = clip.text_model(torch.tensor([spell(text)])).last_hidden_state[:, -1]  # at END
    return float(torch.cosine_similarity(clip.visual_projection(seen), clip.text_projection(read)))


def test_score_is_the_mean_cosine(folder, make_subject):
    prompts = ["a red cat", "go", "the longest of all prompts here", "a"]
    drawn = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    score = CLIPScore(str(folder))(make_subject(prompts=prompts, drawn=drawn))["clip_score"]
    cosines = [reference_cosine(folder, *pair) for pair in zip(drawn, prompts, strict=True)]
    assert score == pytest.approx(100 * sum(cosines) / 4, abs=1e-3)
    assert max(cosines) - min(cosines) > 0.05  # so that mixed-up pairs would be noticed


def test_measures_what_the_model_draws(folder, make_subject):
    subject = make_subject()
    score = CLIPScore(str(folder))(subject)["clip_score"]
    cosines = [reference_cosine(folder, *pair) for pair in zip(subject.drawn, subject.prompts, strict=True)]
    assert score == pytest.approx(100 * sum(cosines) / 4, abs=1e-3)


@pytest.mark.parametrize("model", ["owner/name", "/no/such/folder"])
def test_a_model_that_the_hub_cannot_provide_is_reported_quickly(model, make_subject, monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # no server listens there
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    start = time.monotonic()
    with pytest.raises(Unavailable, match=f"CLIPScore.model.*{model} cannot be loaded .*folder"):
        CLIPScore(model)(make_subject(drawn=None))
    assert time.monotonic() - start < 5


def test_a_folder_without_a_clip_is_reported(tmp_path, make_subject):
    pytest.importorskip("transformers")
    with pytest.raises(Unavailable, match=f"{tmp_path} cannot be loaded"):
        CLIPScore(str(tmp_path))(make_subject(drawn=None))


def test_missing_weights_are_reported(folder, make_subject):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights["text_projection.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(Unavailable, match=r"CLIPScore\.model.* 1 of its weights"):
        CLIPScore(str(folder))(make_subject(drawn=None))


def test_missing_package_is_reported(make_subject, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(Unavailable, match=r'transformers: pip install -e "\.\[evaluation\]"'):
        CLIPScore()(make_subject(drawn=None))
