"""The command `train_codec`: LightningCLI for an autoencoder."""

from collections.abc import Sequence
from typing import Any

from lit_transfusion.autoencoders import LitAutoencoder, PictureData
from lit_transfusion.autoencoders.lit_autoencoder import KEY
from lit_transfusion.config.lightning import RunCLI, arm_first, launch
from lit_transfusion.errors import InputError
from lit_transfusion.lightning_compat import parser_of
from lit_transfusion.training.fsdp import FSDP2Strategy

PROG = "lit_transfusion train_codec"


class CodecCLI(RunCLI):
    """The command `train_codec`: the `fit` of an autoencoder."""

    checkpoint_key = KEY
    commands = ("fit",)

    def setup_parser(self, *arguments: Any) -> None:
        super().setup_parser(*arguments)
        parser_of(self, "fit").prog = PROG  # otherwise the usage in the help has the word fit

    def before_fit(self) -> None:
        super().before_fit()
        if isinstance(self.trainer.strategy, FSDP2Strategy):
            raise InputError("trainer.strategy fsdp2: an autoencoder cannot be sharded; use ddp")


def train_codec(argv: Sequence[str]) -> None:
    """Train an autoencoder, from the words of the command line."""
    description = "Train an autoencoder, whose folder is the codec of a run."
    launch(CodecCLI, (LitAutoencoder, PictureData), ["fit", *arm_first(argv)], PROG, description)
