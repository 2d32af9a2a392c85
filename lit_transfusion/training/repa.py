"""Representation alignment (REPA): hidden states of noisy patches are trained to predict features of the picture."""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_transfusion.errors import InputError
from lit_transfusion.feature_maps import EfficientNetLite0Map, FeatureMap
from lit_transfusion.training.auxiliary import AuxiliaryLoss, PatchStates


class REPA(AuxiliaryLoss):
    """Aligns hidden states of patches with the features of a frozen net (Yu et al., 2025).

    A trained perceptron maps the hidden state of each patch, which comes from the noisy image, to the feature that the
    frozen net computes at the same place of the clean picture. The loss is 1 - the cosine of the two, averaged over
    the patches of an image. The map of features is resized to the grid of patches.

    Args:
        features: The frozen net.
        weight: Weight of this loss (0.5 in the publication).
        layer: Number of the block whose output is aligned, from 1 (8 of 28 in the publication).
        hidden_dim: Width of the two hidden layers of the perceptron (2048 in the publication).
    """

    def __init__(
        self,
        features: FeatureMap | None = None,
        weight: float = 0.5,
        layer: int = 2,
        hidden_dim: int = 512,
    ) -> None:
        super().__init__(weight, layer)
        if hidden_dim < 1:
            raise InputError(f"model.auxiliary: hidden_dim {hidden_dim} is less than 1; use at least 1")
        self.hidden_dim = hidden_dim
        features = features or EfficientNetLite0Map()
        self._features = [features.requires_grad_(False).eval()]  # in a list: checkpoints do not contain it

    def build(self, dim: int) -> None:
        widths = [dim, self.hidden_dim, self.hidden_dim, self._features[0].channels]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.SiLU()]
        self.projector = nn.Sequential(*layers[:-1])

    def forward(self, images: Sequence[PatchStates]) -> Tensor:
        # One call of the projector for all shapes: sharded weights are gathered once, on every rank.
        states = torch.cat([group.states.flatten(0, 1) for group in images])  # (ΣM·P, D)
        projected = self.projector(states).float()  # (ΣM·P, features)
        target = torch.cat([self.targets(group) for group in images])  # (ΣM·P, features)
        distances = 1 - F.cosine_similarity(projected, target, dim=1)  # (ΣM·P)
        sizes = [len(group.states) * group.states.shape[1] for group in images]
        pieces = zip(distances.split(sizes), images, strict=True)
        return torch.cat([piece.view(group.states.shape[:2]).mean(1) for piece, group in pieces])

    @torch.no_grad()
    def targets(self, group: PatchStates) -> Tensor:
        """Compute the features (M · P, features) at the patches of the clean pictures."""
        features = self._features[0].to(group.pictures.device)
        if not len(group.pictures):
            return group.pictures.new_zeros(0, features.channels)
        found = features(group.pictures).float()  # (M, features, h, w)
        resized = F.interpolate(found, group.grid, mode="bilinear", antialias=True)  # (M, features, rows, columns)
        return resized.flatten(2).transpose(1, 2).flatten(0, 1)
