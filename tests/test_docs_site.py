"""The site of the documentation builds, and a page or link that is missing fails the build."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mkdocs", reason='needs pip install -e ".[docs]"')
pytest.importorskip("mkdocstrings_handlers.python", reason='needs pip install -e ".[docs]"')
pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]


@pytest.fixture
def project(tmp_path):
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    (tmp_path / "lit_transfusion").symlink_to(ROOT / "lit_transfusion")
    return tmp_path


def build(project: Path) -> subprocess.CompletedProcess:
    words = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    return subprocess.run(words, cwd=project, capture_output=True, text=True, env=os.environ)


def test_site_builds_with_the_reference(project):
    built = build(project)
    assert built.returncode == 0, built.stderr
    assert "learn_positions" in (project / "site" / "api" / "model" / "index.html").read_text(encoding="utf-8")
    assert (project / "site" / "studies" / "mask" / "samples.png").exists()
    pages = [page for page in (project / "site").rglob("*.html") if page.name != "404.html"]
    assert len(pages) == len(list((project / "docs").rglob("*.md")))
    assert not [page for page in pages if 'src="http' in page.read_text(encoding="utf-8")]  # it works offline


@pytest.mark.parametrize(
    ("page", "text", "named"),
    [
        ("more.md", "# A page", "more.md"),  # which the navigation lacks
        ("data.md", "[gone](gone.md)", "gone.md"),
        ("data.md", "[gone](editing.md#gone)", "editing.md#gone"),
        ("api/model.md", "::: lit_transfusion.model.gone", "lit_transfusion.model.gone"),
    ],
)
def test_missing_page_or_link_fails(project, page, text, named):
    with (project / "docs" / page).open("a", encoding="utf-8") as file:
        file.write(f"\n{text}\n")
    built = build(project)
    assert built.returncode != 0 and named in built.stderr
