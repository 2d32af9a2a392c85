"""Bottlenecks, the only part in which a continuous and a discrete autoencoder differ."""

import math
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from lit_transfusion.errors import InputError, check_at_least


class Term(NamedTuple):
    """One term of a sum of losses."""

    value: Tensor  # scalar
    weight: float | Tensor


def total(terms: dict[str, Term]) -> Tensor:
    """The weighted sum of losses."""
    values = [term.weight * term.value for term in terms.values()]
    return sum(values[1:], values[0])


class Encoded(NamedTuple):
    """Pictures after the bottleneck, as input of the decoder."""

    latents: Tensor  # (N, C, h, w)
    terms: dict[str, Term]  # losses of the bottleneck, by name
    variance: Tensor | None = None  # (N, C, h, w) of the posterior; None for codes
    ids: Tensor | None = None  # (N, h, w) codes


class Bottleneck(nn.Module):
    """What lies between the encoder and the decoder.

    It builds the network of `diffusers` that others load. It has no weights that an optimiser trains: all of them are
    in the network, so that the network alone is the saved codec, and its average is the average of everything.
    """

    num_codes = 0  # 0: latents are continuous

    def build(self, architecture: dict[str, Any]) -> Any:
        """Make the network. `architecture` has the arguments that all networks share."""
        raise NotImplementedError

    def learn(self, net: Any, pictures: Tensor, generator: torch.Generator) -> Encoded:
        """Encode pictures (N, 3, H, W) in [-1, 1] in training, with the losses of the bottleneck.

        Random numbers come from `generator`, or from torch's own generators, which the caller has seeded.
        """
        raise NotImplementedError

    def encode(self, net: Any, pictures: Tensor) -> Encoded:
        """Encode pictures (N, 3, H, W) in [-1, 1] as the saved codec does. It changes nothing."""
        raise NotImplementedError

    def decode(self, net: Any, latents: Tensor) -> Tensor:
        """Decode latents (N, C, h, w) to pictures (N, 3, H, W)."""
        raise NotImplementedError

    def distribute(self) -> None:
        """Prepare for several processes. It is called when they are connected, before the first step."""


class KL(Bottleneck):
    """Continuous latents: a normal distribution for each, kept near the standard one (paper, 4.1).

    The loss is the divergence from the standard normal distribution, summed over a picture and divided by its number
    of pixel values 3·H·W. With the mean over pixel values as the reconstruction loss, this is the ratio of Latent
    Diffusion, which sums both.

    Args:
        weight: Weight of this loss.
    """

    def __init__(self, weight: float = 1e-6) -> None:
        super().__init__()
        self.weight = weight

    def build(self, architecture: dict[str, Any]) -> Any:
        from diffusers import AutoencoderKL

        return AutoencoderKL(**architecture)

    def learn(self, net: Any, pictures: Tensor, generator: torch.Generator) -> Encoded:
        posterior = self._posterior(net, pictures)
        # posterior.kl() is the sum over a picture
        loss = posterior.kl().mean() / pictures[0].numel()
        return Encoded(posterior.sample(generator), {"kl": Term(loss, self.weight)}, posterior.var)

    def encode(self, net: Any, pictures: Tensor) -> Encoded:
        posterior = self._posterior(net, pictures)
        return Encoded(posterior.mode(), {}, posterior.var)

    def decode(self, net: Any, latents: Tensor) -> Tensor:
        return net.decode(latents).sample

    def _posterior(self, net: Any, pictures: Tensor) -> Any:
        from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

        return DiagonalGaussianDistribution(net.encode(pictures).latent_dist.parameters.float())


class _Codes(Bottleneck):
    """Base of discrete bottlenecks: a `VQModel`, which replaces each latent by the nearest row of its codebook."""

    code_dim: int
    commitment_weight: float

    def build(self, architecture: dict[str, Any]) -> Any:
        from diffusers import VQModel

        net = VQModel(**architecture, num_vq_embeddings=self.num_codes, vq_embed_dim=self.code_dim)
        net.quantize.embedding.requires_grad_(False)  # not trained by the optimiser
        return net

    def quantize(self, latents: Tensor) -> Tensor:
        """Return the nearest codes (N, C, h, w) of latents, in training."""
        raise NotImplementedError

    def codebook_rows(self) -> Tensor:
        """The codebook (codes, C)."""
        raise NotImplementedError

    def learn(self, net: Any, pictures: Tensor, generator: torch.Generator) -> Encoded:
        latents = net.encode(pictures).latents.float()
        with torch.autocast(latents.device.type, enabled=False), torch.no_grad():
            codes = self.quantize(latents)
            net.quantize.embedding.weight.copy_(self.codebook_rows())
        loss = F.mse_loss(latents, codes)  # moves latents to their codes
        straight_through = latents + (codes - latents).detach()
        return Encoded(straight_through, {"commitment": Term(loss, self.commitment_weight)})

    def encode(self, net: Any, pictures: Tensor) -> Encoded:
        latents = net.encode(pictures).latents.float()
        codes, _, (_, _, ids) = net.quantize(latents)
        return Encoded(codes, {}, ids=ids.view(len(latents), *latents.shape[2:]))

    def decode(self, net: Any, latents: Tensor) -> Tensor:
        return net.decode(latents, force_not_quantize=True).sample


class VQ(_Codes):
    """Discrete latents: each is the nearest code of a learned codebook (van den Oord et al., 2017).

    A code is the moving average of the latents nearest to it, so no gradient trains it and there is no codebook loss.
    The commitment loss is the mean square distance of a latent from its code. Three remedies keep all codes in use:
    codes of few channels, a start at the clusters of the first batch, and replacement of codes that are hardly used by
    latents of the batch.

    Args:
        codes: Number of codes.
        code_dim: Channels of a code. Few channels help to use all codes.
        commitment_weight: Weight of the commitment loss, β in the paper (Chameleon: 0.25).
        decay: Decay of the moving averages that are the codes.
        kmeans_start: Start with the centres of k-means over the latents of the first batch; else with random codes.
        dead_below: A code is replaced if its average use falls below this share of the mean use of all codes. 0
            replaces none.
    """

    def __init__(
        self,
        codes: int = 512,
        code_dim: int = 4,
        commitment_weight: float = 0.25,
        decay: float = 0.99,
        kmeans_start: bool = True,
        dead_below: float = 0.1,
    ) -> None:
        super().__init__()
        check_at_least("model.bottleneck.codes", codes, 2)
        check_at_least("model.bottleneck.code_dim", code_dim)
        if not 0 <= dead_below < 1:
            raise InputError(f"model.bottleneck.dead_below {dead_below} is invalid: use a share from 0 to below 1")
        self.num_codes = codes
        self.code_dim = code_dim
        self.commitment_weight = commitment_weight
        self.decay = decay
        self.kmeans_start = kmeans_start
        self.dead_below = dead_below
        self.codebook = self._codebook(distributed=False)

    def _codebook(self, distributed: bool) -> nn.Module:
        try:
            from vector_quantize_pytorch import VectorQuantize
        except ImportError as error:
            raise InputError(f'VQ needs the package {error.name}: pip install -e ".[codec]"') from error
        return VectorQuantize(
            dim=self.code_dim,
            codebook_size=self.num_codes,
            decay=self.decay,
            kmeans_init=self.kmeans_start,
            threshold_ema_dead_code=self.dead_below,
            commitment_weight=0.0,  # ours is in `learn`
            rotation_trick=False,
            accept_image_fmap=True,
            sync_codebook=distributed,
        )

    def distribute(self) -> None:
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            codebook = self._codebook(distributed=True)  # the library decides this in its constructor
            codebook.load_state_dict(self.codebook.state_dict())
            self.codebook = codebook.to(self.codebook.zero.device)

    def quantize(self, latents: Tensor) -> Tensor:
        number = latents.numel() // self.code_dim
        number *= dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        codebook = self.codebook._codebook
        if not codebook.initted and number < self.num_codes:
            raise InputError(
                f"model.bottleneck.codes {self.num_codes} is too large for kmeans_start: the first batch has {number} "
                f"latents; raise data.batch_size {math.ceil(self.num_codes / number)} times, use fewer codes, or set "
                "kmeans_start to false"
            )
        # The library compares the average number of latents of a code in a batch with this number. A new code starts
        # with the mean use, so that it has time to be used.
        codebook.threshold_ema_dead_code = self.dead_below * number / self.num_codes
        codebook.reset_cluster_size = number / self.num_codes
        codes, _, _ = self.codebook(latents)
        return codes

    def codebook_rows(self) -> Tensor:
        return self.codebook.codebook


class FSQ(_Codes):
    """Discrete latents without a learned codebook: each channel is rounded to a few levels (Mentzer et al., 2023).

    The codes are all combinations of the levels, evenly spaced from -1 to 1. Unlike the paper's, the rounding has no
    tanh before it: a value outside [-1, 1] gets the outer level, its gradient passes unchanged, and a commitment loss
    brings it back. So the code is the nearest row of a fixed codebook, and the saved network is an exact `VQModel`.

    Args:
        levels: Number of levels of each channel; their product is the number of codes.
        commitment_weight: Weight of the mean square distance of a latent from its code.
    """

    def __init__(self, levels: list[int] = [8, 8, 8], commitment_weight: float = 0.25) -> None:  # noqa: B006
        super().__init__()
        if not levels or min(levels) < 2:
            raise InputError(f"model.bottleneck.levels {levels} is invalid: use numbers of at least 2")
        try:
            from vector_quantize_pytorch import FSQ as Rounding
        except ImportError as error:
            raise InputError(f'FSQ needs the package {error.name}: pip install -e ".[codec]"') from error
        self.levels = levels
        self.commitment_weight = commitment_weight
        self.num_codes = math.prod(levels)
        self.code_dim = len(levels)
        self.rounding = Rounding(list(levels), preserve_symmetry=True, bound_hard_clamp=True)

    def build(self, architecture: dict[str, Any]) -> Any:
        net = super().build(architecture)
        net.quantize.embedding.weight.data.copy_(self.codebook_rows())
        return net

    def quantize(self, latents: Tensor) -> Tensor:
        codes, _ = self.rounding(latents)
        return codes

    def codebook_rows(self) -> Tensor:
        return self.rounding.implicit_codebook
