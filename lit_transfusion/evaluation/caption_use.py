"""Whether a model looks at its captions at all when it draws."""

from collections.abc import Sequence
from random import Random
from typing import ClassVar

from lit_transfusion.data.types import Example
from lit_transfusion.evaluation.diffusion_loss import losses_by_timestep
from lit_transfusion.evaluation.metric import Metric, Subject, Unavailable


class CaptionUseGap(Metric):
    """How much worse pictures are denoised after another picture's caption than after their own.

    `caption_use_gap` is L_DDPM after the wrong captions less that after the right ones, on the same noise and
    timesteps (see `DiffusionLoss`); `caption_use_gap_relative` is the same in per cent of the loss after the right
    ones. A model that draws whatever the caption says is at 0. Since all else is equal, the gap stands out of the noise
    long before pictures do that anyone would call right.

    The wrong captions are the right ones dealt anew, so that on both sides the same captions stand before the same
    pictures, and a liking for some of them cancels out. No picture is dealt one of its own captions, word for word.
    Another's may be true of it all the same, as "an animal" is of many; such a pair adds nothing to the gap, which is
    smaller for it, by as much for every model that is judged on the same examples.

    Args:
        seed: Of noise and timesteps, and of how the captions are dealt.
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


def others_captions(examples: Sequence[Example], captions: Sequence[str], seed: int) -> list[str]:
    """The captions dealt anew, so that no example gets one of its own.

    Raises:
        Unavailable: The examples are too alike for that.
    """
    random, own = Random(seed), [set(example.captions) for example in examples]
    for _ in range(100):  # one deal that swaps cannot mend is rare, and says nothing of the next
        dealt = random.sample(list(captions), len(captions))
        for i in range(len(dealt)):
            if dealt[i] not in own[i]:
                continue
            for j in random.sample(range(len(dealt)), len(dealt)):
                if dealt[i] not in own[j] and dealt[j] not in own[i]:
                    dealt[i], dealt[j] = dealt[j], dealt[i]
                    break
            else:
                break  # no partner for this one
        else:
            return dealt
    raise Unavailable("the held-out captions are too alike: there is none for each picture that is not its own")
