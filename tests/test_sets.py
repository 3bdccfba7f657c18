"""The sets of an evaluation: their order, their captions, and faces through the autoencoder."""

from pathlib import Path

import numpy as np
import pytest
import torch

from custom_datasets.captions import compose
from custom_datasets.celeba_hq_dataset import CelebAHQ, to_model_range
from evaluation import sets
from evaluation.report import as_uint8
from evaluation.sets import CAPTION_SEED, Mirrored, in_random_order
from inference.picture_sets import Request
from inference.text_to_face import TextToFace


@pytest.fixture
def faces(drawn_folder: Path) -> CelebAHQ:
    return CelebAHQ(drawn_folder, None, 64)


@pytest.fixture
def model(run: Path) -> TextToFace:
    return TextToFace.from_run(run)


def test_each_split_is_there_once_in_an_order_that_the_seed_fixes(faces: CelebAHQ) -> None:
    for split, count in (("train", 24), ("val", 6), ("test", 6), (None, 36)):
        images = in_random_order(faces, split)
        assert len(images) == count == len(set(images.places.tolist()))
        assert not np.array_equal(images.places, np.sort(images.places))
        assert np.array_equal(in_random_order(faces, split).places, images.places)
        for place in range(0, count, 5):
            face = faces[int(images.places[place])]
            assert split in (None, face.split)
            assert torch.equal(images[place], face.image)
            assert np.array_equal(images.attributes[place], face.attributes)


def test_the_first_faces_of_a_sorted_copy_are_of_both_sexes() -> None:
    class Sorted:
        """One import lists women first, then men."""

        splits = np.full(1000, 2)
        attributes = np.zeros((1000, 40), bool)

        def __len__(self) -> int:
            return 1000

    Sorted.attributes[600:, 20] = True
    first = in_random_order(Sorted(), "test").attributes[:200, 20]
    assert 0.3 < first.mean() < 0.5


def test_captions_are_those_of_the_faces_then_other_wordings(faces: CelebAHQ) -> None:
    images = in_random_order(faces, "test")
    captions = images.captions(15)
    for number, caption in enumerate(captions):
        face = faces[int(images.places[number % 6])]
        want = compose(face.attributes, face.index, number // 6, CAPTION_SEED)
        assert caption == want
    assert len({caption.text for caption in captions}) > 12
    assert images.captions(4) == captions[:4]


def test_another_split_size_or_order_has_another_key(faces: CelebAHQ, drawn_folder: Path) -> None:
    images = in_random_order(faces, "train")
    keys = [
        images.key,
        in_random_order(faces, "val").key,
        images.first(5).key,
        Mirrored(images).key,
    ]
    keys.append(in_random_order(CelebAHQ(drawn_folder, None, 32), "train").key)
    assert len({str(key) for key in keys}) == len(keys)
    assert in_random_order(faces, "train").key == images.key


def test_mirrored_faces_are_mirrored(faces: CelebAHQ) -> None:
    images = in_random_order(faces, "val")
    assert len(Mirrored(images)) == len(images)
    assert torch.equal(Mirrored(images)[2], images[2].flip(-1))


def test_some_images_are_read_in_the_asked_order(faces: CelebAHQ) -> None:
    images = in_random_order(faces)
    found = sets.read(images, [5, 0, 30], workers=2)
    assert torch.equal(found, torch.stack([images[5], images[0], images[30]]))


def test_faces_go_through_the_decoder_of_generated_pictures(
    model: TextToFace, faces: CelebAHQ, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = in_random_order(faces, "train").first(10)
    decoded, decode = [], model.decode
    monkeypatch.setattr(model, "decode", lambda x: decoded.append(len(x)) or decode(x))
    found = sets.through_autoencoder(model, images, tmp_path)
    assert sum(decoded) == 10
    real = torch.stack(list(images))
    latents = torch.cat([model.vae.encode(to_model_range(part)).mean for part in real.split(8)])
    difference = torch.stack(list(found)).int() - as_uint8(decode(latents)).int()
    assert difference.abs().max() <= 1 and difference.abs().float().mean() < 1e-3  # rounding
    again = sets.through_autoencoder(model, images, tmp_path)
    assert sum(decoded) == 10 and again.key == found.key  # kept
    sets.through_autoencoder(model, images.first(9), tmp_path)
    assert sum(decoded) == 19


def test_an_identity_autoencoder_gives_the_faces_back(
    model: TextToFace, faces: CelebAHQ, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So its distance is the floor's: both are the same images."""

    class Same(torch.nn.Module):
        def posterior(self, images: torch.Tensor) -> object:
            return type("Posterior", (), {"mean": images})

        def decode(self, latents: torch.Tensor) -> torch.Tensor:
            return (latents + 1) / 2

    monkeypatch.setattr(model, "vae", Same())
    images = in_random_order(faces, "val")
    found = sets.through_autoencoder(model, images, tmp_path)
    assert torch.equal(torch.stack(list(found)), torch.stack(list(images)))


def test_a_request_says_who_makes_the_pictures(model: TextToFace, faces: CelebAHQ) -> None:
    captions = in_random_order(faces, "test").captions(9)
    request = sets.request_for(captions, model, model.config.sampling, "epoch_1.pt abc")
    assert (request.device, request.precision) == ("cpu", model.precision)
    assert request.prompts == tuple(caption.text for caption in captions)
    assert len(set(request.seeds)) == 9
    more = in_random_order(faces, "test").captions(12)
    longer = sets.request_for(more, model, model.config.sampling, "epoch_1.pt abc")
    assert longer.prompts[:9] == request.prompts and longer.seeds[:9] == request.seeds


def test_the_untrained_control_is_small(model: TextToFace) -> None:
    sampling = model.config.sampling
    request = Request(*(("a man",) * 2000, tuple(range(2000)), sampling, "epoch_1.pt", "cpu", "no"))
    control = sets.control_request(request)
    assert len(control.prompts) == len(control.seeds) == 250
    assert control.sampling.steps == min(10, sampling.steps)
    assert control.model != request.model and control.key() != request.key()
    other = sets.untrained(model)
    assert other.precision == model.precision
    weights = [each.unet.state_dict()["conv_out.weight"] for each in (model, other)]
    assert not torch.equal(*weights)
