"""Report of an optimiser step whose losses or gradient are not finite."""

import logging
import math
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from lit_transfusion.data.image_tokens import positions_before
from lit_transfusion.data.loader import PackedLoader
from lit_transfusion.errors import InputError
from lit_transfusion.run_folder import NONFINITE
from lit_transfusion.training.objective import compare

log = logging.getLogger(__name__)


class NonFiniteError(InputError):
    """A loss or the norm of the gradient is NaN or infinite."""


def skip_or_stop(module: Any, values: dict[str, float]) -> None:
    """Count a step that is not finite. All ranks must call this function.

    Args:
        module: The LitTransfusion.
        values: Losses and norm of the gradient of the step, by name.

    Raises:
        NonFiniteError: No more steps may be skipped.
    """
    module.skipped_steps += 1
    message = report(module, values)
    if module.skipped_steps > module.skip_nonfinite:
        raise NonFiniteError(message)
    if module.global_rank == 0:
        log.warning("%s This step is skipped, %d of %d.", message, module.skipped_steps, module.skip_nonfinite)


def report(module: Any, values: dict[str, float]) -> str:
    """Save the batches of the current step, and return an error message that names the documents at fault.

    All ranks must call this function, because a sharded net runs on all of them.
    """
    trainer = module.trainer
    step, rank = trainer.global_step + 1, trainer.global_rank
    loader = trainer.train_dataloader
    pieces = loader.step_pieces if isinstance(loader, PackedLoader) else []
    documents = nonfinite_documents(module, pieces)
    batches = [plain(batch.to("cpu")) for batch in module.step.batches]
    folder = Path(trainer.default_root_dir) / NONFINITE
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step_{step:06d}_rank_{rank}.pt"
    torch.save({"step": step, "values": values, "documents": documents, "pieces": pieces, "batches": batches}, path)
    if trainer.world_size > 1:
        ranks: list[Any] = [None] * trainer.world_size
        dist.all_gather_object(ranks, documents)
        documents = [document for of_rank in ranks for document in of_rank]
    names = ("loss_text", "loss_image", "loss_z", "loss_auxiliary", "grad_norm")
    wrong = ", ".join(f"{name} is {values[name]}" for name in names if not math.isfinite(values.get(name, 0.0)))
    where = "The losses of its documents are all finite when they are computed again."
    if documents:
        more = f" and {len(documents) - 3} more" if len(documents) > 3 else ""
        where = f"The cause is in {'; '.join(documents[:3])}{more}."
    return (
        f"step {step} is not finite: {wrong}. {where} Its batches are saved in {path.parent}. The last checkpoint is "
        "unchanged; check these documents, lower the learning rate, or skip such steps with model.skip_nonfinite."
    )


@torch.no_grad()
def nonfinite_documents(module: Any, pieces: list[list[list[tuple[int, int, int]]]]) -> list[str]:
    """Compute the losses again, and return names of the documents on this rank whose losses are not finite."""
    names = []
    for number, batch in enumerate(module.step.batches):
        generator = module.generator(number)
        parts = module.net, module.noise, module.codec
        compared, _ = compare(*parts, batch, generator, module.tokenizer.vocab_size)
        tokens = F.cross_entropy(compared.logits.float(), compared.targets, reduction="none")  # (T + K,)
        of_codes = positions_before(batch.image_groups)[: compared.num_codes]  # (K,)
        at = torch.cat([batch.target_positions, of_codes])[~tokens.isfinite()]
        if compared.image_errors is not None:
            first_patches = torch.cat([group.at[group.learned, :1].flatten() for group in batch.image_groups])
            at = torch.cat([at, first_patches[~compared.image_errors.isfinite()]])
        length = batch.tokens.shape[1]
        rows, documents = at // length, batch.document_ids.flatten()[at]
        for row, document in sorted(set(zip(rows.tolist(), documents.tolist(), strict=True))):
            names.append(
                name_of(module, batch.tokens[row][batch.document_ids[row] == document], pieces, number, row, document)
            )
    return names


def plain(batch: Any) -> Any:
    """Convert NamedTuples to dicts, so that the file is read without the classes of this package."""
    if hasattr(batch, "_asdict"):
        return {name: plain(part) for name, part in batch._asdict().items()}
    return list(map(plain, batch)) if isinstance(batch, tuple) else batch


def name_of(module: Any, tokens: Tensor, pieces: list, number: int, row: int, document: int) -> str:
    """Return the example and epoch of a document, if the loader provides them, and the start of its text."""
    text = repr(module.tokenizer.decode(tokens.tolist())[:60])
    if not pieces:
        return f"document {document} of row {row}, {text}"
    epoch, index, _ = pieces[number][row][document]
    return f"example {index} in epoch {epoch}, {text}"
