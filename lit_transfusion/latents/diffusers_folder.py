"""Load and save an autoencoder in the format of `diffusers`, a folder with `config.json` and weights."""

import os
import re
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache

from lit_transfusion.errors import InputError

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".json")  # endings of a path to a file


def load_autoencoder(
    codec: str, classes: tuple[str, ...], path: str, subfolder: str | None, revision: str | None
) -> Any:
    """Load an autoencoder of one of these classes of `diffusers`.

    Args:
        codec: The codec that loads it, for messages.
        classes: Names of the classes that this codec can use.
        path: Folder that contains the autoencoder, or owner/name on the Hugging Face hub.
        subfolder: Subfolder of `path`.
        revision: Branch, tag or commit on the hub.

    Raises:
        InputError: The path, its config or its weights cannot be used.
    """
    if not os.path.isdir(path):
        check_may_be_on_hub(codec, path, subfolder, revision)

    import diffusers  # imported here: it takes seconds, and Pixels does not use it

    place = f"{codec} path {path!r}" + (f", subfolder {subfolder!r}" if subfolder else "")
    try:
        config = diffusers.AutoencoderKL.load_config(path, subfolder=subfolder, revision=revision)
    except (OSError, ValueError) as error:
        if os.path.isdir(path):
            fix = "contains no readable config.json; check the folder"
            fix += "" if subfolder else ", or if it is a whole pipeline, set subfolder: vae (or vqvae)"
        else:
            fix = (
                "is not a folder on this machine, and the Hugging Face hub provided no such model; check the path "
                "and the network"
            )
        raise InputError(f"{place} {fix}") from error

    class_name = config.get("_class_name")
    if class_name not in classes:
        raise InputError(
            f"{place} contains a model of class {class_name}, not one of {', '.join(classes)}; choose such a model"
            + {"VQModel": ", or the codec VQ", "AutoencoderKL": ", or the codec VAE"}.get(class_name, "")
        )
    try:
        autoencoder, loading = getattr(diffusers, class_name).from_pretrained(
            path, subfolder=subfolder, revision=revision, low_cpu_mem_usage=False, output_loading_info=True
        )
    except Exception as error:  # a missing or truncated file, or weights that do not fit the config
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{place}: the weights of the {class_name} cannot be loaded ({reason}); save or download them again"
        ) from error
    if missing := loading["missing_keys"]:  # diffusers would use random numbers for them
        raise InputError(
            f"{place}: the file of weights lacks {len(missing)} weights of the {class_name}, the first is "
            f"{missing[0]}; save or download it again"
        )
    return autoencoder


def save_autoencoder(autoencoder: Any, path: str, folder: Path) -> None:
    """Write an autoencoder that was loaded from `path` to `folder`/codec."""
    if os.path.isabs(path):  # diffusers would write this machine's path into its config.json
        autoencoder.register_to_config(_name_or_path=os.path.basename(path))
    autoencoder.save_pretrained(folder / "codec")


def check_may_be_on_hub(codec: str, path: str, subfolder: str | None, revision: str | None) -> None:
    """Check that a path may be a name on the hub. Without a network, a request to the hub takes half a minute.

    Raises:
        InputError: It is the path of a file, or of a folder that does not exist.
    """
    owner, _, name = path.partition("/")
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", path) or name.endswith(WEIGHTS):
        problem = "is a file, not a folder" if os.path.isfile(path) else "is not a folder on this machine"
        raise InputError(
            f"{codec} path {path!r} {problem}; use the folder with its config.json, or owner/name on the hub"
        )
    # A model in the cache was downloaded before, so the path is a name on the hub, for example one in a checkpoint.
    fetched = try_to_load_from_cache(path, f"{subfolder}/config.json" if subfolder else "config.json")
    if os.path.isdir(owner) and revision is None and fetched is None:
        raise InputError(
            f"{codec} path {path!r} does not exist, but the folder {owner} does; fix the path, or set revision: main "
            "if it is a name on the hub"
        )
