"""The training of configs/quickstart.yaml as a loop of torch, without Lightning: `python docs/plain_loop.py 20`

The losses are those of `fit --config configs/quickstart.yaml --trainer.strategy auto --trainer.devices 1`.
"""

import sys

import torch

from lit_transfusion.data.document_set import DocumentSet
from lit_transfusion.data.loader import PackedLoader
from lit_transfusion.data.packing import SquarePatches
from lit_transfusion.data.permutation import hash_of
from lit_transfusion.data.recipe import Recipe
from lit_transfusion.data.tokenizer import Tokenizer
from lit_transfusion.diffusion import DDPM
from lit_transfusion.latents import Pixels
from lit_transfusion.model import SIZES, Bidirectional, LinearPatcher, Transfusion
from lit_transfusion.shapes.source import Shapes
from lit_transfusion.training.losses import LossWeights, transfusion_loss
from lit_transfusion.training.objective import compare
from lit_transfusion.training.optim import WarmupCosine, decay_groups

SIDE, PATCH, LENGTH, SEED, STEPS = 24, 8, 128, 0, 3500


def train(num_steps: int) -> list[tuple[float, float]]:
    """Train and return the losses of text and images of each step."""
    source, codec, noise = Shapes(image_size=SIDE, scenes=["single"]), Pixels(), DDPM(prediction_type="sample")
    tokenizer = Tokenizer.train(source.split("train").captions(), vocab_size=512)
    patches, recipe = SquarePatches(PATCH, codec.downscale), Recipe(image_first_max_timestep=500)
    per_image = patches.of_pixels(SIDE, SIDE)
    documents = DocumentSet(source.split("train"), recipe, tokenizer, patches, per_image, LENGTH, SEED)
    loader = PackedLoader(documents, batch_size=4, latent_shape=codec.latent_shape(SIDE))

    torch.manual_seed(SEED)
    patcher = LinearPatcher(codec.latent_channels, SIZES["nano"].dim, PATCH, positions=3)
    net = Transfusion(tokenizer.vocab_size, SIZES["nano"], patcher, Bidirectional())
    options = {"lr": 4e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1, "fused": True}
    optimizer = torch.optim.AdamW(decay_groups(net), **options)
    schedule = WarmupCosine(optimizer, warmup_steps=100, total_steps=STEPS, final_lr=2e-4)

    losses = []
    for step, batch in zip(range(num_steps), loader, strict=False):
        generator = torch.Generator().manual_seed(hash_of(SEED, step, 0, 0))
        compared, _ = compare(net, noise, codec, batch, generator, tokenizer.vocab_size)
        terms = transfusion_loss(compared, LossWeights(image=10.0))
        optimizer.zero_grad()
        terms.total.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append((terms.text.item(), terms.image.item()))
        print(f"step {step + 1}: text {losses[-1][0]:.6f}, image {losses[-1][1]:.6f}")
    return losses


if __name__ == "__main__":
    train(int(sys.argv[1]) if len(sys.argv) > 1 else STEPS)
