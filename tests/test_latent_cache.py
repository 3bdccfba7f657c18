"""Latents: the cache holds what encoding gives, once, whatever interrupts it."""

import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from custom_datasets import latent_cache
from custom_datasets.celeba_hq_dataset import CelebAHQ, to_model_range
from custom_datasets.latent_cache import (
    ImageLatents,
    LatentCache,
    cache_key,
)
from files import UNFINISHED
from models.loading import fingerprint
from models.vae_wrapper import Posterior, VAEWrapper

HALF = {"atol": 2e-3, "rtol": 2e-3}  # float16 keeps eleven bits


def open_cache(
    faces: CelebAHQ, vae: VAEWrapper, folder: Path, flip: bool = True, **options: object
) -> LatentCache:
    return latent_cache.open_latent_cache(faces, vae, folder, fingerprint(vae), flip, **options)


def key_of(faces: CelebAHQ, vae: VAEWrapper, flip: bool, precision: str) -> str:
    return cache_key(faces, vae, fingerprint(vae), flip, precision)


class CountingVAE(VAEWrapper):
    """Counts the images it encodes, and breaks down after `limit` batches."""

    def __init__(self, autoencoder: AutoencoderKL, limit: int = 10**9) -> None:
        super().__init__(autoencoder)
        self.limit, self.batches, self.images = limit, 0, 0

    def posterior(self, images: torch.Tensor) -> Posterior:
        if self.batches >= self.limit:
            raise RuntimeError("the power went out")
        self.batches, self.images = self.batches + 1, self.images + len(images)
        return super().posterior(images)


@pytest.fixture
def faces(drawn_folder: Path) -> CelebAHQ:
    return CelebAHQ(drawn_folder, "train", 64)


@pytest.fixture
def vae(autoencoder_folder: Path) -> CountingVAE:
    return CountingVAE(AutoencoderKL.from_pretrained(autoencoder_folder))


def breaking_after(batches: int, like: CountingVAE) -> CountingVAE:
    return CountingVAE(like.autoencoder, batches)


@pytest.mark.parametrize("flip", [True, False])
def test_the_cache_holds_what_encoding_gives(
    faces: CelebAHQ, vae: CountingVAE, tmp_path: Path, flip: bool
) -> None:
    """Of a mirrored face, which is another latent than the mirrored latent of the face."""
    cache = open_cache(faces, vae, tmp_path, flip, batch_size=5, workers=1)
    assert cache.values.shape == (24, 1 + flip, 2, 4, 8, 8)
    assert cache.values.dtype == np.float16
    source, images = ImageLatents(faces, vae, workers=1), to_model_range(faces.images())
    assert len(cache) == len(source) == 24
    for side in range(1 + flip):
        asked = np.arange(24), np.full(24, bool(side))
        expected = vae.encode(images.flip(-1) if side else images)
        torch.testing.assert_close(cache.fetch(*asked), expected, **HALF)
        torch.testing.assert_close(source.fetch(*asked), expected)


def test_threads_that_encode_whole_batches_take_turns_and_small_parts(
    faces: CelebAHQ, vae: CountingVAE, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU four threads make batches at once: its memory holds one part, whatever they ask."""
    monkeypatch.setattr(latent_cache, "BATCH_PIXELS", 5 * 64 * 64)
    sizes, is_busy, real = [], threading.Lock(), vae.posterior

    def posterior(images: torch.Tensor) -> Posterior:
        sizes.append(len(images))
        assert is_busy.acquire(blocking=False)
        try:
            return real(images)
        finally:
            is_busy.release()

    monkeypatch.setattr(vae, "posterior", posterior)
    source, asked = ImageLatents(faces, vae, workers=2), (np.arange(12), np.zeros(12, bool))
    with ThreadPoolExecutor(3) as pool:
        found = [each.result() for each in [pool.submit(source.fetch, *asked) for _ in range(3)]]
    assert sizes == 3 * [5, 5, 2]
    expected = vae.encode(to_model_range(faces.images()[:12]))
    for each in found:
        torch.testing.assert_close(each, expected)


def test_nothing_is_encoded_twice(faces: CelebAHQ, vae: CountingVAE, tmp_path: Path) -> None:
    key = key_of(faces, vae, True, "no")  # of a process that was killed while it reserved room
    (tmp_path / f"latents_train_64_{key}.encoding.npy.1{UNFINISHED}").write_bytes(b"half")
    first = open_cache(faces, vae, tmp_path, workers=1)
    assert vae.images == 48
    again = open_cache(faces, vae, tmp_path, batch_size=3, workers=1)
    assert vae.images == 48 and again.path == first.path
    assert np.array_equal(again.values, first.values)
    assert [path.suffix for path in sorted(tmp_path.iterdir())] == [".lock", ".holder", ".npy"]


def test_the_key_is_of_everything_that_matters(
    drawn_folder: Path, autoencoder_folder: Path, vae: CountingVAE
) -> None:
    faces = CelebAHQ(drawn_folder, "train", 64)
    key = key_of(faces, vae, True, "no")
    assert key_of(CelebAHQ(drawn_folder, "train", 64), vae, True, "no") == key
    other_weights = AutoencoderKL.from_pretrained(autoencoder_folder)
    other_weights.encoder.conv_in.bias.data[0] += 1e-3
    other_scale = AutoencoderKL.from_pretrained(autoencoder_folder, scaling_factor=0.6)
    others = [
        key_of(CelebAHQ(drawn_folder, "train", 32), vae, True, "no"),
        key_of(CelebAHQ(drawn_folder, "val", 64), vae, True, "no"),
        key_of(faces, vae, False, "no"),
        key_of(faces, vae, True, "bf16"),
        key_of(faces, VAEWrapper(other_weights), True, "no"),
        key_of(faces, VAEWrapper(other_scale), True, "no"),
    ]
    assert len({key, *others}) == 7


def test_an_interrupted_encode_goes_on_without_what_a_power_cut_left_half_written(
    faces: CelebAHQ, vae: CountingVAE, tmp_path: Path
) -> None:
    whole = open_cache(faces, vae, tmp_path / "whole", batch_size=1, workers=1)
    with pytest.raises(RuntimeError, match="power"):  # after ten faces and one side of the next
        open_cache(faces, breaking_after(21, vae), tmp_path / "cut", batch_size=1, workers=1)
    assert not list((tmp_path / "cut").glob("latents_*[0-9a-f].npy"))
    (path,) = (tmp_path / "cut").glob("*.encoding.npy")
    values = np.load(path, mmap_mode="r+")
    assert np.isfinite(values[:10]).all() and np.isnan(values[10:]).all()
    values[4, 1, 0, 3, 5:] = np.nan
    values.flush()
    last = breaking_after(10**9, vae)
    resumed = open_cache(faces, last, tmp_path / "cut", batch_size=1, workers=1)
    assert last.images == 2 * 15 and np.array_equal(resumed.values, whole.values)
    assert len([path for path in (tmp_path / "cut").iterdir() if ".lock" not in path.name]) == 1


def test_a_cache_cut_short_is_never_read(
    faces: CelebAHQ, vae: CountingVAE, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    cache = open_cache(faces, vae, tmp_path, batch_size=4, workers=1)
    expected = np.array(cache.values)
    os.truncate(cache.path, int(0.999 * cache.path.stat().st_size))
    again = open_cache(faces, vae, tmp_path, batch_size=4, workers=1)
    assert np.array_equal(again.values, expected) and vae.images == 2 * 48
    assert f"{cache.path} is not whole" in capsys.readouterr().out


def test_a_full_disk_is_told_before_anything_is_encoded(
    faces: CelebAHQ, vae: CountingVAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array_header_1_0", full)
    name = key_of(faces, vae, True, "no")
    with pytest.raises(OSError, match=rf"{name}.*GB"):
        open_cache(faces, vae, tmp_path, workers=1)
    assert vae.images == 0 and not list(tmp_path.glob("*.npy*"))


def test_latents_that_are_not_finite_are_refused_by_image(
    faces: CelebAHQ, autoencoder_folder: Path, tmp_path: Path
) -> None:
    class Overflowing(VAEWrapper):
        def posterior(self, images: torch.Tensor) -> Posterior:
            posterior = super().posterior(images)
            posterior.mean[1] *= 1e9  # finite in float32, not in float16
            return posterior

    vae = Overflowing(AutoencoderKL.from_pretrained(autoencoder_folder))
    with pytest.raises(FloatingPointError, match=r"1\.jpg is not finite"):
        open_cache(faces, vae, tmp_path, batch_size=4, workers=1)
    assert not list(tmp_path.glob("latents_*[0-9a-f].npy"))


def test_of_two_runs_one_encodes_and_the_other_waits(
    faces: CelebAHQ, vae: CountingVAE, tmp_path: Path
) -> None:
    """Threads stand for processes here and below: what they share is files."""
    runs = [breaking_after(10**9, vae) for _ in range(2)]
    with ThreadPoolExecutor(2) as threads:
        opened = threads.map(lambda run: open_cache(faces, run, tmp_path, workers=1), runs)
        caches = list(opened)
    assert sorted(run.images for run in runs) == [0, 48]
    assert np.array_equal(caches[0].values, caches[1].values)


def test_processes_share_the_encoding_and_resume_with_another_number(
    faces: CelebAHQ, vae: CountingVAE, tmp_path: Path
) -> None:
    count = 3
    whole = open_cache(faces, vae, tmp_path / "whole", batch_size=2, workers=1)
    with pytest.raises(RuntimeError, match="power"):  # one process encodes four faces and dies
        open_cache(faces, breaking_after(5, vae), tmp_path / "cut", batch_size=2, workers=1)
    barrier = threading.Barrier(count)
    shares = [breaking_after(10**9, vae) for _ in range(count)]

    def work(index: int) -> LatentCache:
        mine = SimpleNamespace(
            process_index=index, num_processes=count, wait_for_everyone=barrier.wait
        )
        options = {"batch_size": 2, "workers": 1, "processes": mine}
        return open_cache(faces, shares[index], tmp_path / "cut", **options)

    with ThreadPoolExecutor(count) as threads:
        caches = list(threads.map(work, range(count)))
    assert all(np.array_equal(cache.values, whole.values) for cache in caches)
    assert sum(share.images for share in shares) == 2 * (24 - 4)
    assert min(share.images for share in shares) >= 2 * 2 * (10 // count)


@pytest.mark.parametrize(
    ("wanted", "capability", "precision"),
    [("best", (8, 0), "no"), ("best", (7, 5), "fp16"), ("fast", (7, 5), "fp16")],
)
def test_latents_are_made_in_the_best_precision(
    wanted: str, capability: tuple[int, int], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert latent_cache.encoding_precision(wanted, torch.device("cuda")) == precision
    assert latent_cache.encoding_precision("best", torch.device("cpu")) == "no"
