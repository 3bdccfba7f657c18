"""The page: what it writes and makes, and that its command serves it."""

import json
import os
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
from conftest import save_run
from gradio_client import Client
from gradio_client.exceptions import AppError
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from config import Config, DiffusionConfig
from diffusion.objective import Objective
from inference import page
from inference.text_to_face import TextToFace
from models.graphs import GraphedUNet
from settings import override

REPOSITORY = Path(__file__).resolve().parents[1]
# The command, with its runs in the folder of the first argument.
SERVE = """
import pathlib, sys, config
config.ROOT = pathlib.Path(sys.argv.pop(1))
import app
app.main()
"""
# A signal ends the page, and more come while the pictures are deleted.
END_AGAIN = """
import app, signal
app.delete_pictures_when_ended()
try:
    signal.raise_signal(signal.SIGTERM)
finally:
    for name in {"SIGTERM", "SIGHUP"} & set(dir(signal)):
        signal.raise_signal(getattr(signal, name))
    print("deleted")
"""
NOTHING = [None] * 7  # all fields but the prompt cleared


@pytest.fixture(scope="module")
def run(tiny_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    values = override(tiny_config, {"training.mixed_precision": "no"})
    return save_run(tmp_path_factory.mktemp("run"), values)


@pytest.fixture(scope="module")
def model(run: Path) -> TextToFace:
    return TextToFace.from_run(run)


@pytest.fixture(scope="module")
def address(model: TextToFace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A page whose pictures lie where the system keeps temporary files, as on some machines."""
    temporary = str(tmp_path_factory.mktemp("temporary"))
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("GRADIO_TEMP_DIR", temporary)
        patched.setenv("TMPDIR", temporary)
        built = page.build_page(model)
        _, address, _ = built.launch(
            server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, theme=page.THEME
        )
        yield address
        built.close()


def test_pictures_are_those_of_generate_and_carry_what_made_them(
    address: str, model: TextToFace
) -> None:
    fields = ["", "smiling", 2.0, 4, "ddim", 7, 2]
    client = Client(address, verbose=False)
    shown, _, line = client.predict("a man", *fields, api_name="/sample")
    assert line == "done"
    how = model.settings(guidance_scale=2.0, steps=4, sampler="ddim")
    want = model.generate(["a man"] * 2, [7, 8], "smiling", how=how)
    for seed, item, picture in zip((7, 8), shown, want, strict=True):
        image = Image.open(item["image"])
        told = {"prompt": "a man", "negative_prompt": "smiling", "seed": seed, "steps": 4}
        assert told.items() <= json.loads(image.text["parameters"]).items()
        got = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(64, 64, 3)
        assert (got.permute(2, 0, 1).float() - picture * 255).abs().max() < 1.01


def test_the_last_pictures_are_finished_though_the_sampler_takes_fewer_steps(
    model: TextToFace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A preview tells after which step it was made."""
    objective = Objective(DiffusionConfig(num_train_timesteps=20))
    monkeypatch.setattr(model, "objective", objective)
    how = model.settings(guidance_scale=1.0, steps=20, sampler="ddim")
    *previews, last = [shown for shown, _ in page.pictures_of(model, "a man", [3], how) if shown]
    assert previews and all("stopped_after_step" in told_of(shown[0]) for shown in previews)
    assert "stopped_after_step" not in told_of(last[0])
    want = model.generate(["a man"], [3], how=how)[0]
    assert (pil_to_tensor(last[0]).float() - want * 255).abs().max() < 1.01


def told_of(image: Image.Image) -> dict[str, Any]:
    return json.loads(image.info["parameters"])


@pytest.mark.parametrize(
    ("place", "value"),
    [(0, "a man with a beard " * 30), (3, 10**9), (6, 1000)],
)
def test_bounds_hold_for_a_client_without_a_browser(address: str, place: int, value: Any) -> None:
    fields = ["", "", 2.0, 4, "ddim", 0, 1]
    fields[place] = value
    with pytest.raises((AppError, ValueError)):
        Client(address, verbose=False).predict("a man", *fields, api_name="/sample")


def test_stop_ends_the_run_within_a_step(
    address: str, model: TextToFace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client's `cancel` is what the Stop button of a browser sends."""
    begun, real = [], GraphedUNet.__call__

    def slow(*arguments: Any) -> torch.Tensor:
        begun.append(time.monotonic())
        time.sleep(0.2)
        return real(*arguments)

    monkeypatch.setattr(GraphedUNet, "__call__", slow)
    assert any(event["cancels"] for event in page.build_page(model).config["dependencies"])
    fields = ["", "", 2.0, 100, "ddim", 0, 1]
    job = Client(address, verbose=False).submit("a man", *fields, api_name="/sample")
    while len(begun) < 3:
        time.sleep(0.01)
    job.cancel()
    stopped = time.monotonic()
    while time.monotonic() - begun[-1] < 1:
        time.sleep(0.05)
    assert 3 <= len(begun) <= 6 and begun[-1] - stopped < 0.5


def test_two_users_at_once_get_their_own_pictures(address: str) -> None:
    def ask(seed: int) -> list[bytes]:
        fields = ["", "", 2.0, 4, "dpm++", seed, 1]
        answer = Client(address, verbose=False).predict("a man", *fields, api_name="/sample")
        return [Path(item["image"]).read_bytes() for item in answer[0]]

    with ThreadPoolExecutor(2) as users:
        answers = list(users.map(ask, (1, 2)))
    assert answers[0] != answers[1]
    assert answers == [ask(1), ask(2)]


@pytest.mark.skipif(os.name == "nt", reason="Windows ends a process without a signal")
def test_the_page_is_served_behind_a_proxy_until_it_is_ended_and_leaves_nothing(
    run: Path, tmp_path: Path
) -> None:
    (tmp_path / "temporary").mkdir()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "smoke").symlink_to(run)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    proxies = ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY")
    environment = os.environ | dict.fromkeys(proxies, "socks5://127.0.0.1:9")
    words = ["--preset=smoke", f"--port={port}", "--set=sampling.steps=3"]
    with subprocess.Popen(
        [sys.executable, "-u", "-c", SERVE, str(tmp_path), *words],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment | dict.fromkeys(("TMPDIR", "GRADIO_TEMP_DIR"), str(tmp_path / "temporary")),
    ) as process:
        lines = iter(process.stdout.readline, b"")
        assert any(f"http://127.0.0.1:{port}".encode() in line for line in lines)
        client = Client(f"http://127.0.0.1:{port}", verbose=False)
        shown, *_ = client.predict("a man", *NOTHING, api_name="/sample")
        process.terminate()
        _, errors = process.communicate(timeout=300)
    assert len(shown) == page.USUAL_PICTURES
    assert process.returncode == 128 + signal.SIGTERM and b"Traceback" not in errors
    assert not list((tmp_path / "temporary").rglob("*.png"))


def test_a_second_signal_does_not_end_the_deletion() -> None:
    command = [sys.executable, "-c", END_AGAIN]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (128 + signal.SIGTERM, "deleted")
