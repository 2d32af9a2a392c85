"""How far the pictures that a model draws are, as a set, from those of the data."""

import warnings

import torch
from torch import Tensor, nn

from lit_transfusion.evaluation.features import FeatureExtractor, Inception
from lit_transfusion.evaluation.metric import Metric, Subject


class FID(Metric):
    """The Fréchet distance between drawn and held-out pictures (Heusel et al., 2017; paper, 4.1 and Table 3).

    Both sets of features are taken for normal distributions, whose distance is |μ − μ'|² + tr(Σ + Σ' − 2 √(Σ Σ')).
    It is 0 for equal sets. With no more pictures than features (2048 of Inception) Σ is mostly missing and the distance
    far too large; it then compares models at one and the same number of pictures and nothing else, which `KID` does
    better. The paper draws 30 000.

    It is called `fid` with Inception alone, and `fd_` and the name of the features with any other.

    Args:
        features: What describes the pictures; Inception if not given.
    """

    def __init__(self, features: FeatureExtractor | None = None) -> None:
        self.features = features or Inception()
        self.columns = {"fid" if self.features.name == Inception.name else f"fd_{self.features.name}": "less"}

    def __call__(self, subject: Subject) -> dict[str, float]:
        from torchmetrics.image.fid import FrechetInceptionDistance  # here, since it takes seconds

        held_out, drawn = described(subject, self.features)
        distance = FrechetInceptionDistance(already_described(held_out.shape[1]))
        distance.update(held_out, real=True)
        distance.update(drawn, real=False)
        return dict.fromkeys(self.columns, float(distance.compute()))


class KID(Metric):
    """The kernel distance between drawn and held-out pictures (Bińkowski et al., 2018).

    It is the squared maximum mean discrepancy under the kernel k(x, y) = (x·y / F + 1)³. Its expectation does not
    depend on the number of pictures, so that it is the one to look at when they are few; it may fall below 0.

    It is called `kid` with Inception alone, and `kid_` and the name of the features with any other.

    Args:
        features: What describes the pictures; Inception if not given.
        subset_size: Pictures of a random subset. Up to this many are taken all at once.
        num_subsets: Subsets over which the distance is averaged, if there are more pictures than that.
        seed: Of the subsets.
    """

    def __init__(
        self,
        features: FeatureExtractor | None = None,
        subset_size: int = 1000,
        num_subsets: int = 100,
        seed: int = 0,
    ) -> None:
        self.features = features or Inception()
        self.subset_size = subset_size
        self.num_subsets = num_subsets
        self.seed = seed
        self.columns = {"kid" if self.features.name == Inception.name else f"kid_{self.features.name}": "less"}

    def __call__(self, subject: Subject) -> dict[str, float]:
        from torchmetrics.image.kid import KernelInceptionDistance  # here, since it takes seconds

        held_out, drawn = described(subject, self.features)
        subset_size = min(self.subset_size, len(drawn))
        subsets = self.num_subsets if subset_size < len(drawn) else 1
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*save all extracted features.*")
            distance = KernelInceptionDistance(already_described(held_out.shape[1]), subsets, subset_size)
        distance.update(held_out, real=True)
        distance.update(drawn, real=False)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)  # from which torchmetrics draws the subsets
            mean, _ = distance.compute()
        return dict.fromkeys(self.columns, float(mean))


@torch.inference_mode()
def described(subject: Subject, features: FeatureExtractor) -> tuple[Tensor, Tensor]:
    """The features (N, F) of the held-out and of the drawn pictures, in double precision."""
    features.prepare()  # before anything is drawn, since that takes long
    device = subject.pipeline.net.head.weight.device
    features.to(device)
    both = []
    for pictures in (subject.pictures, subject.drawn):
        batches = []
        for rows in subject.batches(len(pictures)):
            subject.on_progress("comparing", rows.start, len(pictures))
            batches.append(features(pictures[rows.start : rows.stop].to(device)).double().cpu())
        both.append(torch.cat(batches))
    return both[0], both[1]


def already_described(num_features: int) -> nn.Module:
    """What torchmetrics is to see the pictures with, when it gets features in their place."""
    nothing = nn.Identity()
    nothing.num_features = num_features
    return nothing
