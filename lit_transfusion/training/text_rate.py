"""Learn the weights of text at another rate than the rest, or not at all (LMFusion, Shi et al., 2024).

The rows of the image markers, and of other tokens that were not copied, are in the same matrices as the rows of the
text. They have to be learned in any case: otherwise the model could never write BOI.
"""

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from lit_transfusion.errors import InputError
from lit_transfusion.model import Transfusion

MATRICES = ("embedding.weight", "head.weight")  # with a row for each token


def text_parameters(net: Transfusion) -> dict[str, nn.Parameter]:
    """The parameters that text passes: embedding, head, and the Transformer without what only patches use."""
    return {
        name: parameter
        for name, parameter in net.named_parameters()
        if name in MATRICES
        or (name.startswith("transformer.") and not (".patches." in name or name.startswith("transformer.patch_norm.")))
    }


def check_text_rate(net: Transfusion, text_rate: float, init_from: str | None, base_dim: int | None) -> None:
    """Raise InputError if this factor of the learning rate of the text is not possible."""
    if text_rate < 0:
        raise InputError(f"model.text_rate {text_rate} is negative; use 0 (frozen) or more")
    if text_rate == 1:
        return
    if init_from is None:
        raise InputError(f"model.text_rate {text_rate} needs weights that were copied; set model.init_from")
    if base_dim is not None:
        raise InputError(
            "model.text_rate and model.base_dim cannot be combined, since both set the learning rate of the text; set "
            "model.base_dim to null or model.text_rate to 1"
        )
    weights = net.transformer.config.modality_weights
    if text_rate == 0 and weights != "all":
        raise InputError(
            f"model.text_rate 0 would freeze weights that patches use: model.size.modality_weights is {weights}; set "
            "it to all, so that patches have their own"
        )


def freeze_text(net: Transfusion) -> None:
    """Freeze the parameters of the text, without the two matrices that have rows of new tokens."""
    for name, parameter in text_parameters(net).items():
        parameter.requires_grad_(name in MATRICES)


@torch.no_grad()
def keep_rows(net: Transfusion, rows: int) -> None:
    """Set the gradient of the first rows of embedding and head to 0. Without weight decay, they then do not change."""
    for weight in (net.embedding.weight, net.head.weight):
        gradient = weight.grad
        if isinstance(gradient, DTensor):
            is_new = (torch.arange(len(gradient), device=gradient.device) >= rows)[:, None].to(gradient.dtype)
            gradient *= distribute_tensor(is_new, gradient.device_mesh, gradient.placements, src_data_rank=None)
        elif isinstance(gradient, Tensor):
            gradient[:rows] = 0
