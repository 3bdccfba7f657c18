"""The page: what it writes and draws, and that a person at a browser sees a face."""

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gradio as gr
import pytest
import torch
from gradio_client import Client
from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

import app
from config import SamplingConfig
from inference.text_to_face import TextToFace

WISH = app.Wish("a man", "", 2.0, 4, "ddim", 7, 2)
SECONDS = 60


@pytest.fixture
def model(run: Path) -> TextToFace:
    return TextToFace.from_run(run)


@pytest.fixture
def address(model: TextToFace) -> Iterator[str]:
    page = app.build_page(model)
    _, address, _ = page.launch(
        server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, theme=app.THEME
    )
    yield address
    page.close()


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
    assert app.write_prompt(*choices) == want


def test_pictures_are_those_of_generate_and_carry_what_made_them(
    model: TextToFace, tmp_path: Path
) -> None:
    *_, (files, line) = app.draw(model, WISH, tmp_path / "pictures")
    assert line == "done"
    want = model.generate(["a man"] * 2, [7, 8], 2.0, 4, "ddim")
    for seed, path, picture in zip((7, 8), files, want, strict=True):
        image = Image.open(path)
        facts = json.loads(image.text["parameters"])
        assert (facts["prompt"], facts["seed"], facts["steps"]) == ("a man", seed, 4)
        got = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(64, 64, 3)
        assert (got.permute(2, 0, 1).float() - picture * 255).abs().max() < 1.01


def test_a_tiny_autoencoder_decodes_what_is_on_its_way_and_nothing_else(
    model: TextToFace, tiny_autoencoder_folder: Path
) -> None:
    preview = app.open_preview(str(tiny_autoencoder_folder), model, "cpu")
    plain, quick = list(app.denoise(model, WISH)), list(app.denoise(model, WISH, preview))
    assert [step for step, _ in quick] == [step for step, _ in plain] == [0, 1, 2, 3, 4]
    assert torch.equal(quick[-1][1], plain[-1][1])
    predict = model.predict(["a man"] * 2, 2.0)
    latents = model.trajectory(predict, [7, 8], SamplingConfig("ddim", 4))
    for (_, picture), on_its_way in zip(quick[:-1], latents, strict=False):
        assert torch.equal(picture, preview.decode(on_its_way))


def test_a_tiny_autoencoder_of_other_latents_is_refused(model: TextToFace) -> None:
    with pytest.raises(ValueError, match=r"8 channels over 8 pixels.*4 over 8"):
        app.open_preview("assets/demo_autoencoder", model, "cpu")


def test_a_prompt_that_is_too_long_is_explained(model: TextToFace, tmp_path: Path) -> None:
    wish = app.Wish("a man with a beard " * 30, "", 2.0, 4, "ddim", 0, 1)
    with pytest.raises(gr.Error, match="Shorten it"):
        list(app.draw(model, wish, tmp_path / "pictures"))


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
