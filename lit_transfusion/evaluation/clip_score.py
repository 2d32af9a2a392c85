"""How well drawn pictures fit their prompts, as CLIP sees it."""

from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, ClassVar

import torch

from lit_transfusion.evaluation.features import PATIENCE, as_bytes
from lit_transfusion.evaluation.metric import Metric, Subject, Unavailable

if TYPE_CHECKING:
    from transformers import CLIPModel, CLIPProcessor


class CLIPScore(Metric):
    """The cosine between the embeddings of a drawn picture and of its prompt, times 100 (paper, 4.1 and Table 3).

    It is the mean over the prompts (Hessel et al., 2021, in another scale). The paper's models are at 22 to 26. Prompts
    beyond the model's length, 77 tokens, are cut short.

    Args:
        model: Name of a CLIP on the Hugging Face hub, or a folder that holds one with its processor. Scores of one
            model cannot be compared with those of another.
    """

    columns: ClassVar[dict[str, str]] = {"clip_score": "more"}

    def __init__(self, model: str = "openai/clip-vit-base-patch32") -> None:
        self.model = model

    @torch.inference_mode()
    def __call__(self, subject: Subject) -> dict[str, float]:
        clip, processor = load_clip(self.model)  # before anything is drawn, since that takes long
        device = subject.pipeline.net.head.weight.device
        clip.to(device)
        total = 0.0
        for rows in subject.batches(len(subject.prompts)):
            images = list(as_bytes(subject.drawn[rows.start : rows.stop]))
            texts = subject.prompts[rows.start : rows.stop]
            inputs = processor(images=images, text=texts, return_tensors="pt", padding=True, truncation=True)
            output = clip(**inputs.to(device))
            # torchmetrics' CLIPScore would do no more; it fails with transformers 5, and cuts the end of a long prompt
            # off with the token from which CLIP reads all of it.
            total += float((output.image_embeds * output.text_embeds).sum())  # both of length 1
        return {"clip_score": 100 * total / len(subject.prompts)}


def load_clip(model: str) -> tuple["CLIPModel", "CLIPProcessor"]:
    """From a folder, the hub's cache or the hub; `Unavailable` where it cannot be had."""
    try:
        from transformers import CLIPModel, CLIPProcessor
    except ImportError as error:
        raise Unavailable('CLIPScore needs transformers: pip install -e ".[evaluation]"') from error
    refusal = "" if Path(model).is_dir() else hub_refusal(model)
    try:
        clip, loading = CLIPModel.from_pretrained(model, local_files_only=bool(refusal), output_loading_info=True)
        processor = CLIPProcessor.from_pretrained(model, local_files_only=bool(refusal))
    except Exception as error:  # the network's, the disk's, or that of a file that holds something else
        reason = f"not in the hub's cache, and the hub: {refusal}" if refusal else shorten(str(error), 120)
        raise Unavailable(f"CLIP {model} cannot be loaded ({reason}); model may be a folder that holds it") from error
    if loading["missing_keys"]:  # transformers goes on with random numbers in their place
        raise Unavailable(f"CLIP {model}: its file of weights lacks {len(loading['missing_keys'])} of a CLIP's")
    return clip.eval(), processor


def hub_refusal(model: str) -> str:
    """Why the hub does not hand out this model; empty if it does. transformers would ask for half a minute."""
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(model, timeout=PATIENCE)
    except Exception as error:  # offline by choice or not, no such model, a name that cannot be one
        return shorten(f"{type(error).__name__}: {error}", 120)
    return ""
