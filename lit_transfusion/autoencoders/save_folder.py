"""Write an autoencoder as a folder of `diffusers`, with the scale of its latents."""

import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lit_transfusion.autoencoders.reconstruction_measures import LatentStatistics

MEASURED = "measured.json"  # in the folder: step, what the validation measured, mean and deviation of each channel


def save_folder(net: Any, folder: Path, statistics: LatentStatistics, measured: dict[str, float], step: int) -> None:
    """Write `config.json`, the weights and MEASURED. Earlier files are replaced only when the new ones are complete.

    `scaling_factor` is 1 / the standard deviation of all latents. An AutoencoderKL also gets their mean as
    `shift_factor`: latents of the diffusion = (z - shift_factor) · scaling_factor. A VQModel has no such key.
    """
    scale = {"scaling_factor": 1 / max(statistics.overall_std, 1e-6)}
    if "shift_factor" in net.config:
        scale["shift_factor"] = statistics.overall_mean
    net.register_to_config(**scale)
    report = {
        "step": step,
        **{name: value for name, value in measured.items() if not name.startswith("latent_")},
        "latent_mean": statistics.mean.tolist(),
        "latent_std": statistics.std.tolist(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=".codec") as partial:
        net.save_pretrained(partial)
        (Path(partial) / MEASURED).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        for path in sorted(Path(partial).iterdir(), reverse=True):  # config.json last
            os.replace(path, folder / path.name)
