"""A package imports only packages that come before it, so that there are no circular imports."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import lit_transfusion

ROOT = Path(lit_transfusion.__file__).parent
ORDER = [  # packages and top-level modules
    *("__init__", "errors", "wording", "hardware", "printing", "text_reader", "whole_file", "file_lock", "progress"),
    *("hub", "timestep_buckets"),
    *("allowed_imports", "serialization", "lightning_compat"),
    *("model", "diffusion", "latents", "feature_maps"),
    "data",
    "generation",
    "run_folder",
    *("training", "evaluation", "autoencoders", "prepare", "shapes"),
    *("config", "studies", "commands"),
    *("cli", "__main__"),
]


def imported(path: Path) -> set[str]:
    """The packages and top-level modules of lit_transfusion that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "lit_transfusion":
            names |= {f"lit_transfusion.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    ours = {name.split(".")[1] for name in names if name.startswith("lit_transfusion.")}
    return {name for name in ours if not name.startswith("__")}  # __version__


@pytest.mark.parametrize("package", ORDER[1:])
def test_imports_go_downwards(package):
    paths = [ROOT / f"{package}.py"] if (ROOT / f"{package}.py").exists() else sorted((ROOT / package).rglob("*.py"))
    assert paths
    for path in paths:
        upwards = {name for name in imported(path) if ORDER.index(name) > ORDER.index(package)}
        assert not upwards, f"{path.relative_to(ROOT)} imports {', '.join(upwards)}"


def test_every_package_is_in_the_order():
    found = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert found == set(ORDER)


@pytest.mark.parametrize("module", ["generation", "generation.settings", "generation.model_card", "errors"])
def test_modules_that_commands_read_their_options_from_import_no_torch(module):
    code = f"import sys, lit_transfusion.{module}; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
