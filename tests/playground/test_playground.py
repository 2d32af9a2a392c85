"""The command, from the terminal to the browser."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lit_transfusion import cli
from lit_transfusion.diffusion import DDPM
from lit_transfusion.generation.checkpoint import KEY
from lit_transfusion.generation.pictures import to_pil

needs_gradio = 'needs pip install -e ".[playground]"'


@pytest.fixture(scope="module")
def ckpt(make_pipeline, tmp_path_factory):
    pipeline = make_pipeline(noise=DDPM(prediction_type="sample"))
    weights = {f"net.{name}": weight for name, weight in pipeline.net.state_dict().items()}
    path = tmp_path_factory.mktemp("run") / "run.ckpt"
    torch.save({"state_dict": weights, KEY: pipeline.describe()}, path)
    return str(path)


@pytest.fixture
def refused(capsys, monkeypatch):
    for name in ("GRADIO_ANALYTICS_ENABLED", "GRADIO_TEMP_DIR"):  # which the command sets
        monkeypatch.setenv(name, "")

    def refused(*arguments):
        with pytest.raises(SystemExit) as caught:
            cli.main(["playground", *arguments])
        assert caught.value.code == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        return line

    return refused


def test_without_gradio_it_says_how_to_install_it(refused, ckpt, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "lit_transfusion.commands.playground.page", raising=False)
    assert refused("--ckpt", ckpt) == 'error: the playground needs gradio; pip install -e ".[playground]" installs it'


def test_checkpoint_that_is_not_there_is_named(refused):
    pytest.importorskip("gradio", reason=needs_gradio)
    assert "none.ckpt not found" in refused("--ckpt", "none.ckpt", "--port", "0")


def test_port_that_is_taken_is_named(refused, ckpt):
    pytest.importorskip("gradio", reason=needs_gradio)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"--port {port}: Address already in use" in refused("--ckpt", ckpt, "--port", port)
    assert "--port 70000" in refused("--ckpt", ckpt, "--port", "70000")


# In a browser


@pytest.fixture
def kept(tmp_path):
    """Where the pictures that are shown are kept."""
    (tmp_path / "kept").mkdir()
    return tmp_path / "kept"


@pytest.fixture
def server(ckpt, kept):
    """The command in a process of its own, and the address that it prints."""
    pytest.importorskip("gradio", reason=needs_gradio)
    command = [sys.executable, "-m", "lit_transfusion", "playground", "--ckpt", ckpt, "--port", "0"]
    environment = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[1]), "TMPDIR": str(kept)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as process:
        process.address = re.match(r"http://\S+", process.stdout.readline()).group()
        yield process
        process.kill()


@pytest.fixture
def page():
    """One in headless Chromium, which keeps a list of what it asks for, and of what its console says is wrong."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs pip install playwright")
    installed = filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome")))
    with playwright.sync_playwright() as browsers:
        try:
            browser = browsers.chromium.launch(executable_path=next(installed, None), args=["--no-sandbox"])
        except playwright.Error:
            pytest.skip("there is no Chromium")
        page = browser.new_page()
        page.requested, page.wrong = [], []
        page.on("request", lambda request: page.requested.append(request.url))
        page.on("console", lambda message: page.wrong.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: page.wrong.append(str(error)))
        yield page
        browser.close()


@pytest.mark.slow
def test_each_tab_does_its_task_in_a_browser(server, page, tmp_path):
    to_pil(torch.linspace(-1, 1, 48).view(3, 4, 4)).save(tmp_path / "given.png")
    expect = pytest.importorskip("playwright.sync_api").expect
    page.goto(server.address)

    def tab(name):
        page.get_by_role("tab", name=name).click()
        return page.get_by_role("tabpanel").filter(visible=True)

    drawing = tab("Text → image")
    drawing.get_by_label("Prompt", exact=True).fill("a red circle")
    drawing.get_by_role("button", name="Draw").click()
    drawing.get_by_text("done in").wait_for()
    expect(drawing.locator("img")).to_have_count(4)
    for picture in drawing.locator("img").all():
        expect(picture).to_have_js_property("naturalWidth", 384)

    describing = tab("Image → text")
    describing.get_by_role("button", name="Describe").click()
    page.get_by_text("there is no picture yet").wait_for()
    describing.locator("input[type=file]").set_input_files(tmp_path / "given.png")
    describing.locator("img").wait_for()
    describing.get_by_role("button", name="Describe").click()
    page.wait_for_function("() => [...document.querySelectorAll('textarea')].some(box => box.disabled && box.value)")

    editing = tab("Edit")
    editing.locator("input[type=file]").set_input_files(tmp_path / "given.png")
    editing.locator("img").wait_for()
    editing.get_by_label("Instruction").fill("make it blue")
    editing.get_by_role("button", name="Edit").click()
    editing.get_by_text("done in").wait_for()
    expect(editing.locator("img").last).to_have_js_property("naturalWidth", 384)

    telling = tab("Interleaved")
    telling.get_by_label("Prompt").fill("a red circle")
    telling.get_by_role("button", name="Go on").click()
    telling.get_by_text("stopped by").wait_for()
    assert telling.locator(".story .given").inner_text() == "a red circle"

    assert page.title().endswith("run.ckpt")
    page.screenshot(path=tmp_path / "page.png", full_page=True)
    assert (tmp_path / "page.png").stat().st_size > 10_000
    assert all(url.startswith((server.address, "data:", "blob:")) for url in page.requested)
    assert page.wrong == []


@pytest.mark.slow
def test_it_closes_cleanly_while_a_page_is_open_and_draws(server, page, kept):
    page.goto(server.address)
    page.get_by_label("number input for Steps").first.fill("250")
    page.get_by_label("number input for Steps").first.press("Tab")
    page.get_by_role("button", name="Draw").click()
    page.get_by_text("of 250").first.wait_for()
    assert any(path.is_file() for path in kept.rglob("*"))
    server.send_signal(signal.SIGINT)
    assert server.wait(timeout=30) == 0
    assert server.stderr.read() == ""
    assert not list(kept.iterdir())
