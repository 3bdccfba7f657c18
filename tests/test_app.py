"""The page: what it writes and draws, and that a person at a browser sees a face."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
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
from config import SamplingConfig
from inference import page
from inference.text_to_face import TextToFace

WISH = page.Wish("a man", "", 2.0, 4, "ddim", 7, 2)
SECONDS = 60


@pytest.fixture
def model(run: Path) -> TextToFace:
    return TextToFace.from_run(run)


@pytest.fixture
def address(model: TextToFace) -> Iterator[str]:
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


def test_pictures_are_those_of_generate_and_carry_what_made_them(
    model: TextToFace, tmp_path: Path
) -> None:
    *_, (files, line) = page.draw(model, WISH, tmp_path / "pictures")
    assert line == "done"
    want = model.generate(["a man"] * 2, [7, 8], 2.0, 4, "ddim")
    for seed, path, picture in zip((7, 8), files, want, strict=True):
        image = Image.open(path)
        facts = json.loads(image.text["parameters"])
        assert (facts["prompt"], facts["seed"], facts["steps"]) == ("a man", seed, 4)
        assert (facts["guidance_interval"], facts["guide_epoch"]) == ([0, 1], None)
        got = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(64, 64, 3)
        assert (got.permute(2, 0, 1).float() - picture * 255).abs().max() < 1.01


def test_a_tiny_autoencoder_decodes_what_is_on_its_way_and_nothing_else(
    model: TextToFace, tiny_autoencoder_folder: Path
) -> None:
    preview = app.open_preview(str(tiny_autoencoder_folder), model)
    plain, quick = list(page.denoise(model, WISH)), list(page.denoise(model, WISH, preview))
    assert [step for step, _ in quick] == [step for step, _ in plain] == [0, 1, 2, 3, 4]
    assert torch.equal(quick[-1][1], plain[-1][1])
    predict = model.predictor(["a man"] * 2, 2.0)
    latents = model.trajectory(predict, [7, 8], "ddim", 4)
    for (_, picture), on_its_way in zip(quick[:-1], latents, strict=False):
        assert torch.equal(picture, preview.decode(on_its_way))


def test_a_tiny_autoencoder_of_other_latents_is_refused(model: TextToFace) -> None:
    with pytest.raises(ValueError, match=r"8 channels over 8 pixels.*4 over 8"):
        app.open_preview("assets/demo_autoencoder", model)


DEFAULTS = SamplingConfig("ddim", 30, 2.5)
FIELDS = ("a man", "smiling", 4.0, 8, "dpm++", 3, 2)


def test_a_field_that_was_cleared_takes_its_default() -> None:
    assert page.read_wish(DEFAULTS, *FIELDS) == page.Wish(*FIELDS)
    empty = page.read_wish(DEFAULTS, *[None] * 7)
    assert empty == page.Wish("", "", 2.5, 30, "ddim", 0, page.USUAL_PICTURES)
    numbers = page.read_wish(DEFAULTS, "a man", "smiling", 4, 8.0, "dpm++", 3.0, 2.0)  # of JSON
    assert numbers == page.Wish(*FIELDS) and isinstance(numbers.steps, int)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, ["a man"], "prompt: .* is not a text"),
        (1, 3, "negative_prompt: 3 is not a text"),
        (2, -1, "guidance_scale: -1 is below 0"),
        (2, float("nan"), "guidance_scale: nan"),
        (3, 10**9, "1000000000 steps: ask for at most 8 pictures and 100 steps"),
        (3, 2.5, r"steps: 2\.5 is not a whole number"),
        (4, "euler", "'euler' is unknown"),
        (5, -1, r"seeds\[0\]: -1 is out of range"),
        (6, 1000, "1000 pictures, .* ask for at most 8"),
        (6, 0, "pictures: 0 is too small"),
    ],
)
def test_what_the_page_does_not_offer_is_refused(place: int, value: Any, message: str) -> None:
    fields = [*FIELDS[:place], value, *FIELDS[place + 1 :]]
    with pytest.raises(ValueError, match=message):
        page.read_wish(DEFAULTS, *fields)


@pytest.mark.parametrize(("kind", "at_once"), [("cpu", 2), ("cuda", 1), ("mps", 1)])
def test_a_gpu_draws_for_one_at_a_time(
    model: TextToFace, monkeypatch: pytest.MonkeyPatch, kind: str, at_once: int
) -> None:
    monkeypatch.setattr(TextToFace, "device", torch.device(kind))
    (draws,) = [f for f in page.build_page(model).fns.values() if f.api_name == "draw"]
    assert draws.concurrency_limit == at_once


def test_the_runs_own_settings_are_within_the_pages_bounds(model: TextToFace) -> None:
    model.change_sampling(["sampling.steps=200", "sampling.guidance_scale=15"])
    page.build_page(model)
    wish = page.read_wish(model.config.sampling, *[None] * 7)
    assert (wish.steps, wish.guidance_scale) == (200, 15)


def test_a_browser_that_sends_nothing_or_nonsense_gets_pictures_or_the_reason(
    address: str,
) -> None:
    client = Client(address, verbose=False)
    answer = client.predict("a man", *[None] * 7, api_name="/draw")
    assert len(answer[0]) == page.USUAL_PICTURES and answer[2] == "done"
    with pytest.raises(AppError, match="Shorten it"):
        other = "a man with a beard " * 30
        client.predict("a man", other, "", 2.0, 4, "ddim", 0, 1, api_name="/draw")


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that another server listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_port_that_is_taken_names_the_next_free_one(taken: int) -> None:
    with pytest.raises(
        OSError, match=rf"^--port {taken} is in use; .* is --port (\d+) "
    ) as refused:
        app.require_port("127.0.0.1", taken)
    free = int(re.search(r"is --port (\d+)", str(refused.value))[1])
    assert free > taken
    app.require_port("127.0.0.1", free)


@pytest.mark.parametrize("host", ["nonsense.invalid", "x86_64-conda-linux-gnu", "192.0.2.1"])
def test_a_host_that_is_not_this_machine_is_refused(host: str) -> None:
    with pytest.raises(OSError, match=f"^--host {host}: not an address of this machine; use 127"):
        app.require_port(host, 7860)


def free_port(above: int) -> int:
    return next(n for n in range(above + 1, 65_536) if app.refusal_of("127.0.0.1", n) is None)


def test_the_page_is_served_behind_a_proxy_until_ctrl_c(
    run: Path, tmp_path: Path, taken: int
) -> None:
    clone, port = copy_code(run, tmp_path / "clone"), str(free_port(taken))
    proxies = ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY")
    environment = os.environ | dict.fromkeys(proxies, "socks5://127.0.0.1:9")
    words = ["--preset", "smoke", "--port", port, "--set", "sampling.steps=3"]
    with subprocess.Popen(
        [sys.executable, str(clone / "app.py"), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    ) as process:
        line = process.stdout.readline().decode()
        assert line == f"open http://127.0.0.1:{port} in a browser; Ctrl-C stops\n"
        answer = Client(f"http://127.0.0.1:{port}", verbose=False).predict(
            "a man", *[None] * 7, api_name="/draw"
        )
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=300)
    assert len(answer[0]) == page.USUAL_PICTURES
    assert process.returncode == 130 and errors.splitlines()[-1] == b"stopped"
    assert b"Traceback" not in errors


def test_two_users_at_once_get_their_own_pictures(address: str, model: TextToFace) -> None:
    def ask(seed: int) -> list[bytes]:
        answer = Client(address, verbose=False).predict(
            "a man", "", "", 2.0, 4, "dpm++", seed, 1, api_name="/draw"
        )
        return [Path(item["image"]).read_bytes() for item in answer[0]]

    with ThreadPoolExecutor(2) as users:
        answers = list(users.map(ask, (1, 2)))
    assert answers[0] != answers[1]
    assert answers == [ask(1), ask(2)]


def test_a_person_types_and_sees_a_face(address: str, browser: webdriver.Chrome) -> None:
    wait = WebDriverWait(browser, SECONDS)
    browser.get(address)
    prompt = wait.until(lambda b: b.find_element(By.CSS_SELECTOR, "#prompt textarea"))
    prompt.send_keys(Keys.CONTROL, "a")
    prompt.send_keys("a woman with brown hair")
    other = browser.find_element(By.CSS_SELECTOR, "#other textarea")
    other.send_keys("a man with a beard")
    browser.find_element(By.CSS_SELECTOR, "button#draw").click()
    status = browser.find_element(By.CSS_SELECTOR, "#status textarea")
    wait.until(lambda b: status.get_property("value") == "done")
    for gallery in ("#pictures", "#compared"):
        images = wait.until(lambda b, g=gallery: b.find_elements(By.CSS_SELECTOR, f"{g} img"))
        wait.until(lambda b, shown=images: all(i.get_property("naturalWidth") == 64 for i in shown))
        assert len(images) == 4
    severe = [line for line in browser.get_log("browser") if line["level"] == "SEVERE"]
    assert severe == []


def test_the_page_fits_a_phone_and_answers_the_keyboard(
    address: str, browser: webdriver.Chrome
) -> None:
    wait = WebDriverWait(browser, SECONDS)
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 390, "height": 800, "deviceScaleFactor": 2, "mobile": True},
    )
    browser.get(address)
    prompt = wait.until(lambda b: b.find_element(By.CSS_SELECTOR, "#prompt textarea"))
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    prompt.send_keys(Keys.ENTER)
    wait.until(lambda b: len(b.find_elements(By.CSS_SELECTOR, "#pictures img")) == 4)
