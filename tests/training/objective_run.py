"""One optimiser step on four rows, which can be split into micro-batches and ranks.

As a script, it is one of several processes:

python objective_run.py STRATEGY DEVICES MICRO_BATCHES OUTPUT
"""

import sys
from functools import partial

import lightning
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from lit_transfusion.data.grammar import caption_first, unconditional
from lit_transfusion.data.packing import FlatDocument, collate, flatten
from lit_transfusion.data.tokenizer import Tokenizer
from lit_transfusion.data.types import Document, ImageSegment, PackedBatch, TextSegment
from lit_transfusion.diffusion import DDPM
from lit_transfusion.latents import Pixels
from lit_transfusion.model import Bidirectional, LinearPatcher, TransformerConfig
from lit_transfusion.training.fsdp import FSDP2Strategy  # noqa: F401  registers fsdp2
from lit_transfusion.training.lit_module import LitTransfusion


class NoiseOfThePicture(DDPM):
    """Noise that depends on the image only, so that an image has the same loss in any batch."""

    def draw_timesteps(self, max_timesteps: Tensor, generator: torch.Generator) -> Tensor:
        return torch.full_like(max_timesteps, 400)

    def add_noise(self, images: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return super().add_noise(images, (37 * images).cos(), timesteps)

    def target(self, images: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return super().target(images, (37 * images).cos(), timesteps)


def four_rows(tokenizer: Tokenizer) -> list[list[FlatDocument]]:
    """Make a long text, a caption with its image, an image alone, and a short text with an image without loss."""
    generator = torch.Generator().manual_seed(0)
    words = tokenizer.encode("two blue squares above a red circle")

    def image() -> Tensor:
        return torch.rand(3, 4, 4, generator=generator) * 2 - 1

    short = (TextSegment((tokenizer.bos, *words[:2])), ImageSegment(image(), learn=False))
    documents = [
        Document((TextSegment((tokenizer.bos, *words, *words, tokenizer.eos)),)),
        caption_first(words[:3], image(), tokenizer),
        unconditional(image(), tokenizer),
        Document(short),
    ]
    return [[flatten(document, tokenizer, lambda image: 4)] for document in documents]


def batches_of(rows: list[list[FlatDocument]], number: int, tokenizer: Tokenizer) -> list[PackedBatch]:
    """Split the rows into `number` batches of one step."""
    size = len(rows) // number
    batches = [collate(rows[i : i + size], 32, tokenizer.pad, (3, 4, 4)) for i in range(0, len(rows), size)]
    counts = torch.stack([batch.step_counts for batch in batches]).sum(0)
    return [batch._replace(step_counts=counts) for batch in batches]


def train(strategy: str, devices: int, micro_batches: int) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Make one step of SGD with a learning rate of one. Return the change of the weights, and the logged values."""
    tokenizer = Tokenizer.train(["a red circle", "two blue squares above"], 300)
    torch.manual_seed(0)
    module = LitTransfusion(
        tokenizer,
        Pixels(),
        image_size=4,
        patcher=LinearPatcher(3, 16, 2),
        mask=Bidirectional(),
        noise=NoiseOfThePicture(),
        optimizer=partial(torch.optim.SGD, lr=1.0),
        scheduler=partial(torch.optim.lr_scheduler.ConstantLR, factor=1.0),
        size=TransformerConfig(dim=16, n_layers=1, n_heads=2, hidden_dim=32),
    )
    before = {name: weight.detach().clone() for name, weight in module.net.named_parameters()}
    trainer = lightning.Trainer(
        strategy=strategy,
        devices=devices,
        accelerator="cpu",
        accumulate_grad_batches=micro_batches,
        max_epochs=1,
        use_distributed_sampler=False,
        **dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False),
    )
    rows = four_rows(tokenizer)
    share = len(rows) // devices
    rows = rows[trainer.global_rank * share :][:share]
    loader = torch.utils.data.DataLoader(batches_of(rows, micro_batches, tokenizer), batch_size=None)
    trainer.fit(module, loader)
    moved = {name: whole(weight) - before[name] for name, weight in module.net.named_parameters()}
    return moved, {name: value.item() for name, value in trainer.callback_metrics.items()}


def whole(weight: Tensor) -> Tensor:
    return (weight.full_tensor() if isinstance(weight, DTensor) else weight).detach()


if __name__ == "__main__":
    given, output = sys.argv[1:4], sys.argv[4]
    result = train(given[0], int(given[1]), int(given[2]))
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        torch.save(result, output)
