"""What a validation of an autoencoder measures: distances of reconstructions, moments of latents, use of codes."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lit_transfusion.autoencoders.bottlenecks import Encoded
from lit_transfusion.evaluation.features import FeatureExtractor


class LatentStatistics(NamedTuple):
    """Mean and standard deviation of the latents that a diffusion model is trained on."""

    mean: Tensor  # (C,) of each channel
    std: Tensor  # (C,) of each channel
    overall_mean: float
    overall_std: float


class ReconstructionMeasures:
    """Collects what is measured on the batches of a validation.

    Args:
        num_codes: Number of codes, or 0.
        features: Computes features for the distance between pictures and reconstructions as two sets, or None.
    """

    def __init__(self, num_codes: int, features: FeatureExtractor | None) -> None:
        self.features = features
        self.sums: dict[str, Tensor] = {}
        self.num_pictures = 0
        self.use = torch.zeros(num_codes, dtype=torch.long)  # of each code
        self.latent_sums: list[Tensor] = []  # per batch (2, C): of latents and of their squares
        self.num_latents = 0  # in each channel
        self.vectors: list[tuple[Tensor, Tensor]] = []  # features of pictures and of reconstructions

    @torch.no_grad()
    def add(self, pictures: Tensor, reconstruction: Tensor, encoded: Encoded, losses: dict[str, Tensor]) -> None:
        """Add a batch of pictures and reconstructions (N, 3, H, W) in [-1, 1], and the means of its losses."""
        from torchmetrics.functional.image import structural_similarity_index_measure as ssim

        reconstruction = reconstruction.float().clamp(-1, 1)
        error = (reconstruction - pictures).square().mean((1, 2, 3)).clamp(min=1e-10)  # (N,)
        measured = {
            "psnr": (10 * torch.log10(4 / error)).mean(),
            "ssim": ssim(reconstruction, pictures, data_range=2.0),
            **losses,
        }
        for name, mean in measured.items():
            self.sums[name] = self.sums.get(name, 0.0) + mean.double() * len(pictures)
        self.num_pictures += len(pictures)

        latents = encoded.latents.double()
        squares = latents.square() + (0.0 if encoded.variance is None else encoded.variance.double())
        self.latent_sums.append(torch.stack([latents.sum((0, 2, 3)), squares.sum((0, 2, 3))]))  # (2, C)
        self.num_latents += latents[:, 0].numel()
        if encoded.ids is not None:
            self.use += torch.bincount(encoded.ids.flatten().cpu(), minlength=len(self.use))
        if self.features is not None:
            extractor = self.features.to(pictures.device)
            self.vectors.append((extractor(pictures).double().cpu(), extractor(reconstruction).double().cpu()))

    def latent_statistics(self) -> LatentStatistics:
        mean, square = torch.stack(self.latent_sums).sum(0).cpu() / self.num_latents  # (C,) each
        std = (square - mean.square()).clamp(min=0).sqrt()
        overall = (square.mean() - mean.mean().square()).clamp(min=0).sqrt()
        return LatentStatistics(mean, std, float(mean.mean()), float(overall))

    def values(self) -> dict[str, float]:
        """All measures by name."""
        values = {name: float(total) / self.num_pictures for name, total in self.sums.items()}
        statistics = self.latent_statistics()
        for channel, (mean, std) in enumerate(zip(statistics.mean.tolist(), statistics.std.tolist(), strict=True)):
            values |= {f"latent_mean/{channel}": mean, f"latent_std/{channel}": std}
        if len(self.use):
            values |= code_use(self.use)
        if self.features is not None:
            name = "fid" if self.features.name == "inception" else f"fd_{self.features.name}"
            values[name] = frechet_distance(self.vectors)
        return values


def code_use(use: Tensor) -> dict[str, float]:
    """The share of codes that are used, and the perplexity of their use: the number of codes if all are used alike."""
    shares = use.double() / use.sum()
    entropy = -torch.special.xlogy(shares, shares).sum()
    return {"code_usage": float((use > 0).double().mean()), "code_perplexity": float(entropy.exp())}


def frechet_distance(vectors: list[tuple[Tensor, Tensor]]) -> float:
    """The Fréchet distance between features of pictures and of reconstructions; see `evaluation.pictures.FID`."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    from lit_transfusion.evaluation.pictures import identity

    distance: Any = FrechetInceptionDistance(identity(vectors[0][0].shape[1]))
    for pictures, reconstructions in vectors:
        distance.update(pictures, real=True)
        distance.update(reconstructions, real=False)
    return float(distance.compute())
