"""The distances of decoders: the nearer its pictures, the lower a decoder stands."""

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.decoders import table_lines
from config import Config
from evaluation.networks import FeatureNetwork
from models.vae_wrapper import VAEWrapper

CPU = torch.device("cpu")


def colours(images: Tensor) -> Tensor:
    """A network that sees 4 x 4 mean colours, (N, 48)."""
    return torch.nn.functional.adaptive_avg_pool2d(images.float() / 255, 4).flatten(1)


NETWORK = FeatureNetwork("colours", colours)


@pytest.fixture
def preset(tiny_config: Config, tmp_path: Path) -> Config:
    data = dataclasses.replace(
        tiny_config.data, folder=str(tmp_path / "faces"), drawn_counts=(2, 24, 40)
    )
    return dataclasses.replace(tiny_config, data=data)


def test_a_decoder_of_other_pictures_stands_lower(preset: Config, autoencoder_folder: Path) -> None:
    vae = VAEWrapper.from_pretrained(str(autoencoder_folder))
    dark = copy.deepcopy(vae)
    with torch.no_grad():
        dark.autoencoder.decoder.conv_out.weight.zero_()
        dark.autoencoder.decoder.conv_out.bias.fill_(-0.9)
    lines = list(table_lines(preset, {"own": vae, "dark": dark, "again": vae}, NETWORK, CPU))
    assert lines[0] == "colours, 24 faces against 40" and "| 64 px | 128 px |" in lines[1]
    rows = {line.split(" | ")[0].strip("| "): line.split(" | ")[1:] for line in lines[3:]}
    assert rows["own"] == rows["again"]
    assert float(rows["real faces"][0]) < float(rows["dark"][0])
    assert rows["own"] != rows["dark"]


def test_latents_of_another_encoder_are_refused(
    preset: Config, autoencoder_folder: Path, tiny_autoencoder_folder: Path
) -> None:
    decoders = {
        str(folder): VAEWrapper.from_pretrained(str(folder))
        for folder in (autoencoder_folder, tiny_autoencoder_folder)
    }
    with pytest.raises(ValueError, match="has another encoder than"):
        list(table_lines(preset, decoders, NETWORK, CPU))
