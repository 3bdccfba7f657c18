"""The page: what it writes and makes, and that a person at a browser sees a face."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from code_copy import copy_code
from gradio_client import Client
from gradio_client.exceptions import AppError
from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

import app
from inference import page
from inference.text_to_face import TextToFace

SECONDS = 120
NOTHING = [None] * 7  # all fields but the prompt cleared


@pytest.fixture
def model(run: Path) -> TextToFace:
    return TextToFace.from_run(run)


@pytest.fixture
def address(model: TextToFace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A page whose pictures lie where the system keeps temporary files, as on some machines."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "temporary"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    built = page.build_page(model)
    _, address, _ = built.launch(
        server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, theme=page.THEME
    )
    yield address
    built.close()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[webdriver.Chrome]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("needs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        "headless=new no-sandbox disable-gpu disable-dev-shm-usage disable-background-networking "
        f"disable-component-update disable-sync no-first-run user-data-dir={tmp_path}/chromium"
    ).split():
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=Service(driver))
    opened.set_window_size(1280, 1000)
    yield opened
    opened.quit()


@pytest.mark.parametrize(
    ("choices", "want"),
    [
        (("person", "any age", [], [], "either"), "A photo of a person"),
        (("woman", "older", [], [], "smiling"), "A photo of an older woman, smiling"),
        (
            ("man", "young", ["black hair", "a beard"], ["a hat"], "not smiling"),
            "A photo of a young man with black hair and a beard, wearing a hat, not smiling",
        ),
    ],
)
def test_switches_write_the_prompt(choices: tuple, want: str) -> None:
    assert page.write_prompt(*choices) == want


def test_a_tiny_autoencoder_decodes_what_is_on_its_way_and_nothing_else(
    model: TextToFace, tiny_autoencoder_folder: Path
) -> None:
    preview, how = app.open_preview(str(tiny_autoencoder_folder), model), model.settings(2.0, 4)
    plain, quick = (
        [images for images, _ in page.pictures_of(model, "a man", [7, 8], how, "", tiny)]
        for tiny in (None, preview)
    )
    assert len(quick) == len(plain) == 5
    assert [i.tobytes() for i in quick[-1]] == [i.tobytes() for i in plain[-1]]
    assert all(a[0].tobytes() != b[0].tobytes() for a, b in zip(quick[:-1], plain, strict=False))
    with pytest.raises(ValueError, match="8 channels"):
        app.open_preview("assets/demo_autoencoder", model)


def test_pictures_are_those_of_generate_and_carry_what_made_them(
    address: str, model: TextToFace
) -> None:
    fields = ["", "smiling", 2.0, 4, "ddim", 7, 2]
    client = Client(address, verbose=False)
    shown, _, line = client.predict("a man", *fields, api_name="/sample")
    assert line == "done"
    want = model.generate(["a man"] * 2, [7, 8], 2.0, 4, "ddim", "smiling")
    for seed, item, picture in zip((7, 8), shown, want, strict=True):
        image = Image.open(item["image"])
        told = {"prompt": "a man", "negative_prompt": "smiling", "seed": seed, "steps": 4}
        assert told.items() <= json.loads(image.text["parameters"]).items()
        got = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(64, 64, 3)
        assert (got.permute(2, 0, 1).float() - picture * 255).abs().max() < 1.01


def test_a_field_that_was_cleared_takes_its_default_and_words_are_hinted_at(address: str) -> None:
    shown, _, line = Client(address, verbose=False).predict("a cat", *NOTHING, api_name="/sample")
    assert len(shown) == page.USUAL_PICTURES and line.startswith("done") and "cat" in line


@pytest.mark.parametrize(
    ("place", "value"),
    [(0, "a man with a beard " * 30), (2, 1e12), (2, -1), (3, 10**9), (4, "euler"), (6, 1000)],
)
def test_bounds_hold_for_a_client_without_a_browser(address: str, place: int, value: Any) -> None:
    fields = ["", "", 2.0, 4, "ddim", 0, 1]
    fields[place] = value
    with pytest.raises((AppError, ValueError)):
        Client(address, verbose=False).predict("a man", *fields, api_name="/sample")


@pytest.mark.parametrize(("kind", "at_once"), [("cpu", 2), ("cuda", 1)])
def test_a_gpu_samples_for_one_at_a_time(
    model: TextToFace, monkeypatch: pytest.MonkeyPatch, kind: str, at_once: int
) -> None:
    monkeypatch.setattr(TextToFace, "device", torch.device(kind))
    (event,) = [f for f in page.build_page(model).fns.values() if f.api_name == "sample"]
    assert event.concurrency_limit == at_once


def test_two_users_at_once_get_their_own_pictures(address: str) -> None:
    def ask(seed: int) -> list[bytes]:
        fields = ["", "", 2.0, 4, "dpm++", seed, 1]
        answer = Client(address, verbose=False).predict("a man", *fields, api_name="/sample")
        return [Path(item["image"]).read_bytes() for item in answer[0]]

    with ThreadPoolExecutor(2) as users:
        answers = list(users.map(ask, (1, 2)))
    assert answers[0] != answers[1]
    assert answers == [ask(1), ask(2)]


def test_the_page_is_served_behind_a_proxy_until_ctrl_c_and_leaves_nothing(
    run: Path, tmp_path: Path
) -> None:
    clone = copy_code(run, tmp_path / "clone")
    (tmp_path / "temporary").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    proxies = ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY")
    environment = os.environ | dict.fromkeys(proxies, "socks5://127.0.0.1:9")
    words = ["--preset=smoke", f"--port={port}", "--set=sampling.steps=3"]
    with subprocess.Popen(
        [sys.executable, "-u", str(clone / "app.py"), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment | {"TMPDIR": str(tmp_path / "temporary")},
    ) as process:
        lines = iter(process.stdout.readline, b"")
        assert any(f"http://127.0.0.1:{port}".encode() in line for line in lines)
        client = Client(f"http://127.0.0.1:{port}", verbose=False)
        shown, *_ = client.predict("a man", *NOTHING, api_name="/sample")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=300)
    assert len(shown) == page.USUAL_PICTURES
    assert process.returncode in (0, 130) and b"Traceback" not in errors
    assert not list((tmp_path / "temporary").glob("faces_*"))


def test_without_gradio_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["app.py", "--preset=smoke"])
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "inference.page")
    with pytest.raises(SystemExit):
        app.main()
    assert "pip install gradio" in capsys.readouterr().err


def test_a_person_types_and_sees_a_face(address: str, browser: webdriver.Chrome) -> None:
    wait = WebDriverWait(browser, SECONDS)
    browser.get(address)
    prompt = wait.until(lambda b: b.find_element(By.CSS_SELECTOR, "#prompt textarea"))
    prompt.send_keys(Keys.CONTROL, "a")
    prompt.send_keys("a woman with brown hair")
    other = browser.find_element(By.CSS_SELECTOR, "#other textarea")
    other.send_keys("a man with a beard")
    browser.find_element(By.CSS_SELECTOR, "button#sample").click()
    status = browser.find_element(By.CSS_SELECTOR, "#status textarea")
    wait.until(lambda b: status.get_property("value") == "done")
    for gallery in ("#pictures", "#compared"):
        images = wait.until(lambda b, g=gallery: b.find_elements(By.CSS_SELECTOR, f"{g} img"))
        wait.until(lambda b, shown=images: all(i.get_property("naturalWidth") == 64 for i in shown))
        assert len(images) == 4
    severe = [line for line in browser.get_log("browser") if line["level"] == "SEVERE"]
    assert severe == []


def test_stop_ends_what_is_on_its_way(
    address: str, browser: webdriver.Chrome, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait, seen, real = WebDriverWait(browser, SECONDS), [], TextToFace.decode

    def slow(self: TextToFace, latents: torch.Tensor) -> torch.Tensor:
        seen.append(latents)
        time.sleep(2)
        return real(self, latents)

    monkeypatch.setattr(TextToFace, "decode", slow)
    browser.get(address)
    sample = wait.until(lambda b: b.find_element(By.CSS_SELECTOR, "button#sample"))
    sample.click()
    wait.until(lambda b: seen)
    browser.find_element(By.CSS_SELECTOR, "button#stop").click()
    status = browser.find_element(By.CSS_SELECTOR, "#status textarea")
    wait.until(lambda b: status.get_property("value") == "stopped")
    time.sleep(5)
    assert len(seen) < 5 and status.get_property("value") == "stopped"
