"""Metric of how much a model uses its captions when it draws."""

from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING, ClassVar

from lit_transfusion.evaluation.diffusion_loss import losses_by_timestep
from lit_transfusion.evaluation.metric import Metric, Subject, Unavailable

if TYPE_CHECKING:
    from lit_transfusion.data.types import Example


class CaptionUseGap(Metric):
    """Increase of the diffusion loss if each picture follows the caption of another picture instead of its own.

    `caption_use_gap` is L_DDPM after wrong captions minus L_DDPM after the right ones, with the same noise and
    timesteps (see `DiffusionLoss`); `caption_use_gap_relative` is the same in per cent of the loss after the right
    captions. A model that ignores its captions has a gap of 0. Since everything else is equal, the gap is measurable
    long before the drawn pictures look right.

    The wrong captions are a permutation of the right ones: both losses use the same captions and the same pictures, so
    that a preference for some captions cancels out. No picture gets one of its own captions, word for word. A wrong
    caption may still be true of a picture, as "an animal" often is. Such pairs make the gap smaller, by the same share
    for every model that is measured on the same examples.

    Args:
        seed: Seed for noise, timesteps and the permutation of the captions.
    """

    columns: ClassVar[dict[str, str]] = {"caption_use_gap": "more", "caption_use_gap_relative": "more"}
    samples: ClassVar[bool] = False

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def __call__(self, subject: Subject) -> dict[str, float]:
        wrong = others_captions(subject.examples, subject.prompts, self.seed)
        with_own, with_others = (
            float(losses_by_timestep(subject, captions, self.seed).double().mean())
            for captions in (subject.prompts, wrong)
        )
        gap = with_others - with_own
        return {"caption_use_gap": gap, "caption_use_gap_relative": 100 * gap / with_own}


def others_captions(examples: "Sequence[Example]", captions: Sequence[str], seed: int) -> list[str]:
    """Permute the captions so that no example gets one of its own.

    Raises:
        Unavailable: The captions are too similar for such a permutation.
    """
    random, own = Random(seed), [set(example.captions) for example in examples]
    for _ in range(100):  # swaps rarely fail to fix a permutation; then the next one is independent
        permuted = random.sample(list(captions), len(captions))
        for i in range(len(permuted)):
            if permuted[i] not in own[i]:
                continue
            for j in random.sample(range(len(permuted)), len(permuted)):
                if permuted[i] not in own[j] and permuted[j] not in own[i]:
                    permuted[i], permuted[j] = permuted[j], permuted[i]
                    break
            else:
                break  # nothing to swap this one with
        else:
            return permuted
    raise Unavailable(
        "the held-out captions are too similar: not every picture can get a caption that is not its own; use more or "
        "other examples"
    )
