"""The hub's own client against a hub on loopback: from an empty machine to trained steps."""

import hashlib
import io
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import datasets
import imagehash
import numpy as np
import pytest
from PIL import Image
from test_sources import blots

import config
import hub as hub_module
from custom_datasets.opening import open_faces
from custom_datasets.recognition import attribute_digests
from custom_datasets.sources import is_at_hand
from custom_datasets.splits import official_split
from hub import download, is_hub_id
from models.text_encoder import TextEncoder
from training.mirror import Mirror

COMMIT = "a" * 40
KNOWN, STRANGERS = 150, 100
# `train.py` with a root of its own and the tables of a CelebA-HQ of 150 pictures, over and over.
PROGRAM = """
import sys
from pathlib import Path
import numpy as np
import config
home = Path(sys.argv.pop(1))
config.ROOT = home / "root"
from custom_datasets import recognition, sources
tables = np.load(home / "tables.npz")
recognition.known_hashes = lambda: tables["hashes"]
recognition.known_digests = sources.known_digests = lambda: tables["digests"]
import train
from custom_datasets.opening import locate
from training import experiment
opening = experiment.open_faces
def open_faces(config, split):
    assert split == "val" or not sources.is_at_hand(locate(config.data))
    faces = opening(config, split)
    assert sources.is_at_hand(faces.source)
    np.savez(home / f"{split}.npz", indices=faces.indices, attributes=faces.attributes)
    return faces
experiment.open_faces = open_faces
train.main()
"""
SMALL = (
    *("data.image_size=64", "data.cache_latents=false", "unet.latent_size=8", "unet.widths=32,32"),
    *("unet.text_width=32", "training.batch_size=8", "training.num_epochs=2"),
    *("training.validation_faces=4", "training.tracker=none", "sampling.steps=2"),
)


class Hub(BaseHTTPRequestHandler):
    """Serves the models and data sets in `root`/owner/name. Each file breaks off twice: first the
    connection is reset, then it ends early.
    """

    root: Path
    breaks: dict[str, int]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer a question about a repository, or give a file or a part of it."""
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = self.path.partition("?")[0].strip("/").split("/")
        is_api = parts[0] == "api"
        parts = [part for part in parts if part not in ("api", "datasets", "models")]
        folder, asked = self.root.joinpath(*parts[:2]), parts[2:3]
        file = folder.joinpath(*parts[4:])
        if is_api and folder.is_dir() and asked != ["discussions"]:
            files = [
                {"type": "file", "path": path.name, "size": path.stat().st_size, "oid": COMMIT}
                for path in folder.iterdir()
            ]
            siblings = [{"rfilename": each["path"]} for each in files]
            about = {"id": "/".join(parts[:2]), "sha": COMMIT, "siblings": siblings}
            is_list = asked in (["tree"], ["paths-info"])
            self._answer(200, json.dumps(files if is_list else about).encode(), {})
        elif asked == ["resolve"] and file.is_file():
            self._give(file.read_bytes())
        else:
            kind = "Entry" if folder.is_dir() else "Repo"
            self._answer(404, b"", {"X-Error-Code": f"{kind}NotFound"})

    do_HEAD = do_POST = do_GET

    def _give(self, content: bytes) -> None:
        asked, size = self.headers.get("Range"), len(content)
        about = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "Accept-Ranges": "bytes"}
        if not asked:
            return self._answer(200, content, about, self._tries())
        first, _, last = asked.removeprefix("bytes=").partition("-")
        part = content[int(first) : int(last or size) + 1]
        where = f"bytes {first}-{int(first) + len(part) - 1}/{size}"
        self._answer(206, part, about | {"Content-Range": where}, self._tries())

    def _tries(self) -> int:
        tries = self.breaks.get(self.path, 0)
        self.breaks[self.path] = tries + (self.command == "GET")
        return tries

    def _answer(self, status: int, content: bytes, headers: dict, tries: int = 2) -> None:
        self.send_response(status)
        about = {"X-Repo-Commit": COMMIT, "Content-Length": len(content)}
        for name, value in (about | headers).items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.close_connection = tries < 2
        self.wfile.write(content[: len(content) // 2] if tries < 2 else content)
        if tries == 0:
            self.wfile.flush()
            linger = struct.pack("ii", 1, 0)  # closing it then resets it
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.close()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def hub(tmp_path: Path, autoencoder_folder: Path, clip_folder: Path) -> Iterator[dict[str, str]]:
    """A hub with both frozen models, and the environment of a machine that has nothing of it."""
    Hub.root, Hub.breaks = tmp_path / "hub", {}
    shutil.copytree(autoencoder_folder, Hub.root / "stabilityai" / "sd-vae-ft-mse")
    shutil.copytree(clip_folder, Hub.root / "openai" / "clip-vit-base-patch32")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": "0",
    }
    server.shutdown()


def write_parquet(name: str, columns: dict[str, list]) -> None:
    """Put a data set on the hub."""
    (Hub.root / name).mkdir(parents=True)
    table = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    table.to_parquet(Hub.root / name / "train.parquet")


def as_file(image: Image.Image) -> dict[str, bytes | None]:
    content = io.BytesIO()
    image.resize((48, 48)).save(content, "JPEG", quality=90)
    return {"path": None, "bytes": content.getvalue()}


def train(home: Path, environment: dict[str, str], *changes: str) -> str:
    """Train for ten steps; gives what was said."""
    words = [f"--set={change}" for change in (*SMALL, *changes)]
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, home, "--preset=celeba_hq", *words],
        env=os.environ | environment,
        cwd=config.CODE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        said = ""
        for line in process.stdout:
            said += line
            if line.startswith("step"):
                process.terminate()
    assert "\nstep     10" in said, said[-3000:]
    return said


def test_from_an_empty_machine_to_trained_steps(hub: dict[str, str], tmp_path: Path) -> None:
    """On CelebA-HQ as the hub has it; and on pictures alone, shuffled and mixed with others, whose
    attributes come from their column of that data set.
    """
    known = [blots(seed) for seed in range(KNOWN)]
    hashes = [np.packbits(imagehash.phash(p, hash_size=16).hash).view(np.uint64) for p in known]
    pictures, which = [*map(as_file, known)], np.arange(30_000) % KNOWN
    attributes = np.random.default_rng(0).random((30_000, 40)) < 0.5
    digests = attribute_digests(attributes)
    np.savez(tmp_path / "tables.npz", hashes=np.stack(hashes)[which], digests=digests)
    labels = attributes.astype(int).tolist()
    official = {"image": [pictures[i] for i in which], "attributes": labels}
    write_parquet(config.CELEBA_HQ, official)
    pictures += [as_file(blots(1000 + seed)) for seed in range(STRANGERS)]
    order = np.random.default_rng(0).permutation(len(pictures)).tolist()
    write_parquet("someone/pictures", {"image": [pictures[i] for i in order]})

    said = train(tmp_path, hub)
    assert "the source holds 24183 train, 2988 val, 2813 test" in said
    said = train(tmp_path, hub, "name=copy", "data.source=someone/pictures@main")
    assert f"{STRANGERS} of {KNOWN + STRANGERS}" in said
    faces, split = np.load(tmp_path / "train.npz"), official_split()[:KNOWN]
    assert np.array_equal(faces["indices"], np.flatnonzero(split == 0))
    assert np.array_equal(faces["attributes"], attributes[faces["indices"]])
    assert all(count > 2 for path, count in Hub.breaks.items() if path.endswith(".safetensors"))


def test_what_was_not_fetched_whole_is_not_at_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folders are as the hub's client leaves them where it is killed, and where it ends."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    unfinished = tmp_path / "someone___faces" / "default" / "0.0.0" / "abc.incomplete"
    unfinished.mkdir(parents=True)
    assert not is_at_hand("someone/faces")
    (unfinished / "dataset_info.json").write_text("{}")
    assert not is_at_hand("someone/faces")
    unfinished.rename(unfinished.with_suffix(""))
    assert is_at_hand("someone/faces")


class ReadError(Exception):
    """As httpx names what a connection raises that is reset."""


def test_a_connection_that_breaks_again_and_again_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "WAITS", (0, 0))
    tried = []

    def load() -> None:
        tried.append(1)
        raise OSError from ReadError("reset")

    with pytest.raises(ConnectionError):
        download(load)
    assert len(tried) == 3


@pytest.mark.parametrize("name", ["openai/clip vit", "a/b/c", "someone/-faces", "some one/faces"])
def test_what_cannot_be_an_id_is_told_by_its_setting(name: str) -> None:
    """Not by the hub's client, in a traceback."""
    assert not is_hub_id(name) and is_hub_id("openai/clip-vit@main")
    with pytest.raises(FileNotFoundError, match=r"data\.source"):
        open_faces(config.get_config("celeba_hq", [f"data.source={name}"]), None)
    with pytest.raises(FileNotFoundError, match=r"models\.text_encoder"):
        TextEncoder.from_pretrained(name)
    for place in ("hf:", "hf:owner/name@main"):  # of an empty variable; a copy has no revision
        with pytest.raises(ValueError, match=r"training\.mirror"):
            Mirror(place, "x")
    with pytest.raises(ValueError, match=r"training\.mirror"):
        Mirror(f"hf:{name}", "run")
