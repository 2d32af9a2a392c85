"""The command `playground`, in the terminal and in a browser."""

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
def error_of(capsys, monkeypatch):
    for name in ("GRADIO_ANALYTICS_ENABLED", "GRADIO_TEMP_DIR"):  # the command sets these
        monkeypatch.setenv(name, "")

    def error_of(*arguments):
        with pytest.raises(SystemExit) as caught:
            cli.main(["playground", *arguments])
        assert caught.value.code == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        return line

    return error_of


def test_without_gradio_the_error_says_how_to_install_it(error_of, ckpt, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "lit_transfusion.commands.playground.page", raising=False)
    error = error_of("--ckpt", ckpt)
    assert error.startswith("error: ") and "gradio" in error and 'pip install -e ".[playground]"' in error


def test_a_missing_checkpoint_is_named(error_of):
    pytest.importorskip("gradio", reason=needs_gradio)
    assert "none.ckpt not found" in error_of("--ckpt", "none.ckpt", "--port", "0")


def test_a_used_port_is_named(error_of, ckpt):
    pytest.importorskip("gradio", reason=needs_gradio)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"--port {port}: Address already in use" in error_of("--ckpt", ckpt, "--port", port)
    assert "--port 70000" in error_of("--ckpt", ckpt, "--port", "70000")


# In a browser


@pytest.fixture
def picture_folder(tmp_path):
    """The folder for pictures that the page shows."""
    (tmp_path / "pictures").mkdir()
    return tmp_path / "pictures"


@pytest.fixture
def server(ckpt, picture_folder):
    """The command in its own process, with the address that it prints."""
    pytest.importorskip("gradio", reason=needs_gradio)
    command = [sys.executable, "-m", "lit_transfusion", "playground", "--ckpt", ckpt, "--port", "0"]
    environment = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[1]), "TMPDIR": str(picture_folder)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as process:
        process.address = re.match(r"http://\S+", process.stdout.readline()).group()
        yield process
        process.kill()


@pytest.fixture
def page():
    """A page in headless Chromium, with lists of its requests and of errors on its console."""
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
def test_each_tab_works_in_a_browser(server, page, tmp_path):
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
    page.get_by_text("no picture given").wait_for()
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
    telling.get_by_role("button", name="Continue").click()
    telling.get_by_text("stopped by").wait_for()
    assert telling.locator(".story .given").inner_text() == "a red circle"

    assert page.title().endswith("run.ckpt")
    page.screenshot(path=tmp_path / "page.png", full_page=True)
    assert (tmp_path / "page.png").stat().st_size > 10_000
    assert all(url.startswith((server.address, "data:", "blob:")) for url in page.requested)
    assert page.wrong == []


@pytest.mark.slow
def test_it_closes_cleanly_while_a_page_is_open_and_draws(server, page, picture_folder):
    page.goto(server.address)
    page.get_by_label("number input for Steps").first.fill("250")
    page.get_by_label("number input for Steps").first.press("Tab")
    page.get_by_role("button", name="Draw").click()
    page.get_by_text("of 250").first.wait_for()
    assert any(path.is_file() for path in picture_folder.rglob("*"))
    server.send_signal(signal.SIGINT)
    assert server.wait(timeout=30) == 0
    assert server.stderr.read() == ""
    assert not list(picture_folder.iterdir())
