"""What a source of examples has to offer."""

from typing import Literal

from torch.utils.data import Dataset

from lit_transfusion.data.document import Example, Skipped


class Source(Dataset):
    """Pictures with captions, by index.

    A source is a plain map-style data set and a pure function of its arguments and the index: the same index gives the
    same example in any process, so that a run can be resumed and does not depend on the number of workers.

    Args:
        image_size: Side of the square pictures it yields, in pixels (set by the data module's `image_size`).
    """

    def __init__(self, image_size: int = 64) -> None:
        self.image_size = image_size

    def split(self, name: Literal["train", "val"]) -> "Source":
        """The part of this source that is trained on, or the part that is held out. They share no picture."""
        raise NotImplementedError

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, index: int) -> Example | Skipped:
        """The example at `index`, its image (3, image_size, image_size) in [-1, 1]; or why there is none."""
        raise NotImplementedError

    def captions(self) -> list[str]:
        """Captions to train a tokenizer from: all of them, or a fair sample of some ten thousand."""
        raise NotImplementedError
