"""Metric of how well drawn pictures match their prompts, by CLIP."""

from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, ClassVar

from lit_transfusion.evaluation.metric import Metric, Subject, Unavailable

if TYPE_CHECKING:
    from transformers import CLIPModel, CLIPProcessor


class CLIPScore(Metric):
    """The cosine between CLIP's embeddings of a drawn picture and its prompt, times 100 (paper, 4.1 and Table 3).

    It is the mean over the prompts (Hessel et al., 2021, use another scale). The paper's models have 22 to 26. Prompts
    longer than CLIP's limit of 77 tokens are cut.

    Args:
        model: Name of a CLIP on the Hugging Face hub, or a folder with one and its processor. Scores by different CLIPs
            cannot be compared.
    """

    columns: ClassVar[dict[str, str]] = {"clip_score": "more"}

    def __init__(self, model: str = "openai/clip-vit-base-patch32") -> None:
        self.model = model

    def __call__(self, subject: Subject) -> dict[str, float]:
        import torch

        from lit_transfusion.evaluation.features import as_bytes

        clip, processor = load_clip(self.model)  # before the slow drawing
        device = subject.pipeline.net.head.weight.device
        clip.to(device)
        total = 0.0
        for rows in subject.batches(len(subject.prompts)):
            images = [as_bytes(picture) for picture in subject.drawn[rows.start : rows.stop]]
            texts = subject.prompts[rows.start : rows.stop]
            inputs = processor(images=images, text=texts, return_tensors="pt", padding=True, truncation=True)
            with torch.inference_mode():
                output = clip(**inputs.to(device))
            # torchmetrics' CLIPScore computes the same, but fails with transformers 5. It also cuts the end token off
            # long prompts, from which CLIP takes the embedding.
            total += float((output.image_embeds * output.text_embeds).sum())  # both have norm 1
        return {"clip_score": 100 * total / len(subject.prompts)}


def load_clip(model: str) -> tuple["CLIPModel", "CLIPProcessor"]:
    """Load a CLIP from a folder, the hub's cache or the hub.

    Raises:
        Unavailable: It cannot be loaded.
    """
    try:
        from transformers import CLIPModel, CLIPProcessor
    except ImportError as error:
        raise Unavailable('CLIPScore needs transformers: pip install -e ".[evaluation]"') from error
    hub_error = "" if Path(model).is_dir() else error_of_hub(model)
    try:
        clip, loading = CLIPModel.from_pretrained(model, local_files_only=bool(hub_error), output_loading_info=True)
        processor = CLIPProcessor.from_pretrained(model, local_files_only=bool(hub_error))
    except Exception as error:  # errors of the network or the disk, or files of something else
        reason = f"not in the hub's cache, and the hub: {hub_error}" if hub_error else shorten(str(error), 120)
        raise Unavailable(
            f"CLIPScore.model: CLIP {model} cannot be loaded ({reason}); use the path of a folder that contains it"
        ) from error
    if loading["missing_keys"]:  # transformers would use random numbers in their place
        raise Unavailable(
            f"CLIPScore.model: CLIP {model} is incomplete: {len(loading['missing_keys'])} of its weights are missing; "
            "use another model"
        )
    return clip.eval(), processor


def error_of_hub(model: str) -> str:
    """Why the hub cannot provide this model; empty if it can. transformers itself would retry for half a minute."""
    from huggingface_hub import HfApi

    from lit_transfusion.evaluation.features import PATIENCE

    try:
        HfApi().model_info(model, timeout=PATIENCE)
    except Exception as error:  # offline, unknown model, or invalid name
        return shorten(f"{type(error).__name__}: {error}", 120)
    return ""
