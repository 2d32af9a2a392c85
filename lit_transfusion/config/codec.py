"""The command `train_codec`: LightningCLI for an autoencoder."""

from collections.abc import Sequence
from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy

from lit_transfusion.autoencoders import LitAutoencoder, PictureData
from lit_transfusion.autoencoders.lit_autoencoder import KEY
from lit_transfusion.config.lightning import RunCLI, arm_first, launch
from lit_transfusion.errors import InputError
from lit_transfusion.lightning_compat import parser_of

PROG = "lit_transfusion train_codec"


class CodecCLI(RunCLI):
    """The command `train_codec`: the `fit` of an autoencoder."""

    checkpoint_key = KEY

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {"fit": RunCLI.subcommands()["fit"]}

    def setup_parser(self, *arguments: Any) -> None:
        super().setup_parser(*arguments)
        parser_of(self, "fit").prog = PROG  # otherwise the usage in the help has the word fit

    def before_fit(self) -> None:
        if isinstance(self.trainer.strategy, ModelParallelStrategy):
            raise InputError("trainer.strategy: an autoencoder is too small to be sharded; use ddp")
        super().before_fit()


def train_codec(argv: Sequence[str]) -> None:
    """Train an autoencoder, from the words of the command line."""
    description = "Train an autoencoder, whose folder is the codec of a run."
    launch(CodecCLI, (LitAutoencoder, PictureData), ["fit", *arm_first(argv)], PROG, description)
