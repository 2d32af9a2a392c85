"""The configs of the package are found by name from any folder, also when the package is installed from a wheel."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from lit_transfusion.config.compose import CONFIGS, compose, read_config
from lit_transfusion.errors import InputError

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["quickstart", "quickstart.yaml", "configs/quickstart", "configs/quickstart.yaml"])
def test_a_config_of_the_package_is_found_by_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert compose(name)[-1] == (
        str(CONFIGS / "quickstart.yaml"),
        compose(REPOSITORY / "configs/quickstart.yaml")[-1][1],
    )


def test_a_file_goes_before_a_config_of_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart.yaml").write_text("model: {mask: Causal}\n")
    assert compose("quickstart.yaml") == [("quickstart.yaml", {"model": {"mask": "Causal"}})]
    (tmp_path / "own.yaml").write_text("base: quickstart\n")  # next to the file there is no `quickstart` without suffix
    assert "runs/quickstart" in str(read_config(Path("own.yaml")).parts)


@pytest.mark.parametrize("name", ["quickstrat", "configs/quikstart.yaml"])
def test_a_similar_name_is_in_the_error(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=rf"{name} not found; .*quickstart"):
        compose(name)
    with pytest.raises(InputError, match=r"/none.yaml not found; check the path$"):
        compose(tmp_path / "none.yaml")


@pytest.mark.slow
def test_a_wheel_contains_the_configs(tmp_path):
    """Built from a copy, and used outside of the repository."""
    source = tmp_path / "source"
    for folder in ("lit_transfusion", "configs"):
        shutil.copytree(REPOSITORY / folder, source / folder, symlinks=True)
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / file, source / file)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, source]
    subprocess.run(pip, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    inside, outside = tmp_path / "installed" / "lit_transfusion" / "configs", REPOSITORY / "configs"
    names = [path.relative_to(outside) for path in outside.rglob("*.yaml")]
    assert len(names) > 10 and all((inside / name).read_bytes() == (outside / name).read_bytes() for name in names)
    words = ["fit", "--config", "ablate_mask", "--arm", "unet_causal", "--print_config"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "installed")}
    command = [sys.executable, "-m", "lit_transfusion", *words]
    done = subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)
    assert "UNetPatcher" in done.stdout and "arm: unet_causal" in done.stdout
