"""Images as tokens: write the codes of an image at the end of each row, one by one (Chameleon Team, 2024)."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lit_transfusion.generation.decoder import Decoder
from lit_transfusion.generation.denoising import OnStep, report_step
from lit_transfusion.generation.next_token import pick
from lit_transfusion.generation.settings import Sampling


def write_codes(
    decoder: Decoder,
    shape: tuple[int, int, int],
    generators: Sequence[torch.Generator],
    sampling: Sampling,
    on_step: OnStep | None,
) -> Tensor:
    """Write an image of `shape` (1, H, W) after each of the first N rows, with one generator for each.

    Returns its codes (N, 1, H, W). Only codes can be chosen. Guidance combines the logits with those of the null
    prompts, which are the next N rows of the decoder.
    """
    first, count = decoder.pipeline.first_code, len(generators)
    choice = replace(sampling, temperature=sampling.image_temperature, top_k=sampling.image_top_k, top_p=1.0)
    latents = torch.zeros(count, *shape, dtype=torch.int64)
    codes = latents.flatten(1)  # (N, H · W), a view
    for number in range(codes.shape[1]):
        logits = decoder.logits[:, first:]
        if sampling.guided:
            prompted, null = logits.chunk(2)
            logits = null + sampling.guidance_scale * (prompted - null)
        picked = pick(logits, generators, choice)
        codes[:, number] = torch.tensor(picked)
        tokens = [first + code for code in picked]
        decoder.read_tokens([*tokens, *tokens] if sampling.guided else tokens)
        report_step(on_step, number + 1, codes.shape[1], sampling.num_inference_steps, latents)
    return latents.to(decoder.device)
