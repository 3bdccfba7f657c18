"""The hub's own client against a hub on loopback, from an empty machine to a trained step."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image
from test_sources import blots

import config
from custom_datasets.celeba_files import ATTRIBUTE_FILE, IMAGE_FOLDER, read_attributes
from custom_datasets.splits import same_photograph

COMMIT = "a" * 40
PROGRAM = """
import sys
from pathlib import Path
import config
config.ROOT = Path(sys.argv[1])
from custom_datasets.celeba_hq_dataset import CelebAHQ
from custom_datasets.sources import is_at_hand
from training.experiment import Experiment
from training.loop import train
for name in ("someone/labelled", "someone/pictures"):
    was_here = is_at_hand(name)
    faces = CelebAHQ(name, None, 64)
    assert is_at_hand(name) and not was_here
    print(name, faces.indices.tolist(), faces.split_kind, faces.attributes.sum())
changes = ["data.source=someone/pictures", "training.batch_size=8", "training.num_epochs=1"]
settings = config.get_config("smoke", [*changes, "training.tracker=none"])
with Experiment(settings) as opened:
    print("trained", [step.number for step in train(opened.open_all())][:1], len(opened.faces))
"""


class Hub(BaseHTTPRequestHandler):
    """Serves data sets of one parquet file, which lie in `root`/owner/name."""

    root: Path
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer a question about a data set, or give its file or a part of it."""
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = self.path.partition("?")[0].strip("/").split("/")
        is_api = parts[0] == "api"
        name = "/".join(parts[2:4] if is_api else parts[1:3])
        file = self.root / name / "train.parquet"
        if not file.is_file() or not (is_api or parts[-1] == file.name):
            self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        elif is_api:
            entry = {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": COMMIT}
            about = {"id": name, "sha": COMMIT, "siblings": [{"rfilename": file.name}]}
            is_list = len(parts) > 4 and parts[4] in ("tree", "paths-info")
            self._answer(200, json.dumps([entry] if is_list else about).encode(), {})
        elif asked := self.headers.get("Range"):
            content = file.read_bytes()
            first, _, last = asked.removeprefix("bytes=").partition("-")
            part = content[int(first) : int(last or len(content)) + 1]
            end = int(first) + len(part) - 1
            self._answer(206, part, {"Content-Range": f"bytes {first}-{end}/{len(content)}"})
        else:
            self._answer(200, file.read_bytes(), {})

    do_HEAD = do_POST = do_GET

    def _answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        about = {"ETag": f'"{COMMIT}"', "X-Repo-Commit": COMMIT}
        for name, value in (about | headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    """The address of a hub that serves what lies in `tmp_path / "hub"`."""
    Hub.root = tmp_path / "hub"
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_faces_of_the_hub_are_fetched_recognised_and_trained_on(
    hub: str, real_faces: Path, tmp_path: Path
) -> None:
    """With attributes; and pictures alone, shuffled and mixed with others, whose attributes come
    from their column of another data set.
    """
    twins = {index for pair in same_photograph() for index in pair}
    paths = [p for p in (real_faces / IMAGE_FOLDER).iterdir() if int(p.stem) not in twins]
    paths = sorted(paths, key=lambda path: int(path.stem))[::200]
    indices = [int(path.stem) for path in paths]
    pictures = [{"path": None, "bytes": path.read_bytes()} for path in paths]
    attributes = read_attributes(real_faces / ATTRIBUTE_FILE)[1].astype(int)
    shuffled = [*pictures, *(blots(seed) for seed in range(10))]
    order = np.random.default_rng(0).permutation(len(shuffled)).tolist()
    blank = [Image.new("L", (1, 1))] * len(attributes)
    served = {
        "someone/labelled": {"image": pictures, "attributes": attributes[indices].tolist()},
        "someone/pictures": {"image": [shuffled[i] for i in order]},
        config.CELEBA_HQ: {"image": blank, "attributes": attributes.tolist()},
    }
    for name, columns in served.items():
        (tmp_path / "hub" / name).mkdir(parents=True)
        table = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
        table.to_parquet(tmp_path / "hub" / name / "train.parquet")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, tmp_path / "root"],
        env=os.environ | {"HF_ENDPOINT": hub, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"},
        cwd=config.CODE,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    want = f"{indices} identity {attributes[indices].sum()}"
    assert f"someone/labelled {want}" in done.stdout
    assert f"someone/pictures {want}" in done.stdout
    assert f"10 of {len(paths) + 10}" in done.stdout
    assert "trained [1]" in done.stdout
