"""FID and KID: distances between the set of drawn pictures and the set of held-out pictures."""

import warnings
from typing import TYPE_CHECKING

from lit_transfusion.evaluation.metric import Metric, Subject

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lit_transfusion.evaluation.features import FeatureExtractor


class FID(Metric):
    """The Fréchet distance between drawn and held-out pictures (Heusel et al., 2017; paper, 4.1 and Table 3).

    Both sets of features are modelled as normal distributions, with distance |μ − μ'|² + tr(Σ + Σ' − 2 √(Σ Σ')). It is
    0 for equal sets. With fewer pictures than features (Inception has 2048), Σ does not have full rank and the distance
    is much too large. It can then only compare models at the same number of pictures, and `KID` is better at that. The
    paper draws 30,000 pictures.

    The column is `fid` with Inception, and `fd_` plus the name of the features with any other net.

    Args:
        features: Computes the features of the pictures; Inception by default.
    """

    def __init__(self, features: "FeatureExtractor | None" = None) -> None:
        self.features = features or inception()
        self.columns = {"fid" if self.features.name == "inception" else f"fd_{self.features.name}": "less"}

    def __call__(self, subject: Subject) -> dict[str, float]:
        from torchmetrics.image.fid import FrechetInceptionDistance

        held_out, drawn = features_of(subject, self.features)
        distance = FrechetInceptionDistance(identity(held_out.shape[1]))
        distance.update(held_out, real=True)
        distance.update(drawn, real=False)
        return dict.fromkeys(self.columns, float(distance.compute()))


class KID(Metric):
    """The kernel distance between drawn and held-out pictures (Bińkowski et al., 2018).

    It is the squared maximum mean discrepancy with the kernel k(x, y) = (x·y / F + 1)³. Its expectation does not depend
    on the number of pictures, so use it when there are few; it may be below 0.

    The column is `kid` with Inception, and `kid_` plus the name of the features with any other net.

    Args:
        features: Computes the features of the pictures; Inception by default.
        subset_size: Number of pictures in a random subset. If there are not more pictures, all are used at once.
        num_subsets: Number of subsets to average over, if there are more pictures than `subset_size`.
        seed: Seed for the subsets.
    """

    def __init__(
        self,
        features: "FeatureExtractor | None" = None,
        subset_size: int = 1000,
        num_subsets: int = 100,
        seed: int = 0,
    ) -> None:
        self.features = features or inception()
        self.subset_size = subset_size
        self.num_subsets = num_subsets
        self.seed = seed
        self.columns = {"kid" if self.features.name == "inception" else f"kid_{self.features.name}": "less"}

    def __call__(self, subject: Subject) -> dict[str, float]:
        import torch
        from torchmetrics.image.kid import KernelInceptionDistance

        held_out, drawn = features_of(subject, self.features)
        subset_size = min(self.subset_size, len(drawn))
        subsets = self.num_subsets if subset_size < len(drawn) else 1
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*save all extracted features.*")
            distance = KernelInceptionDistance(identity(held_out.shape[1]), subsets, subset_size)
        distance.update(held_out, real=True)
        distance.update(drawn, real=False)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)  # torchmetrics draws the subsets from it
            mean, _ = distance.compute()
        return dict.fromkeys(self.columns, float(mean))


def inception() -> "FeatureExtractor":
    from lit_transfusion.evaluation.features import Inception

    return Inception()


def features_of(subject: Subject, features: "FeatureExtractor") -> "tuple[Tensor, Tensor]":
    """The features (N, F) of the held-out and of the drawn pictures, in float64."""
    import torch

    from lit_transfusion.data.images import map_by_size

    features.prepare()  # before the slow drawing
    device = subject.pipeline.net.head.weight.device
    features.to(device)
    both = []
    for pictures in (subject.pictures, subject.drawn):
        vectors: list[Tensor] = []
        for rows in subject.batches(len(pictures)):
            subject.on_progress("comparing", rows.start, len(pictures))
            with torch.inference_mode():
                vectors += map_by_size(lambda batch: features(batch.to(device)), pictures[rows.start : rows.stop])
        both.append(torch.stack(vectors).double().cpu())
    return both[0], both[1]


def identity(num_features: int) -> "nn.Module":
    """A feature extractor for torchmetrics that returns its input, since it gets features instead of pictures."""
    from torch import nn

    module = nn.Identity()
    module.num_features = num_features
    return module
