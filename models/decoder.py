"""Another decoder for the same latents, made by `python -m pretraining decoder`.

Its folder is a whole autoencoder, whose encoder must be the same, or holds the decoder alone: the
description of the autoencoder, and `decoder.safetensors` with half of its weights, in float16.
"""

import copy
import json
from pathlib import Path

from diffusers import AutoencoderKL, AutoencoderTiny
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from config import ModelsConfig
from models.loading import WEIGHTS, locate, quiet
from models.vae_wrapper import VAEWrapper

DECODER_FILE = "decoder.safetensors"
PARTS = ("decoder.", "post_quant_conv.")  # of an autoencoder: what latents pass


def open_decoder(config: ModelsConfig, autoencoder: VAEWrapper, upsampling: int) -> VAEWrapper:
    """The autoencoder whose decoder draws the pictures: `decoder` where it is named, or the given.

    Args:
        upsampling: pixels that shall be drawn for one latent position along a side.

    Raises:
        FileNotFoundError: see `open_model`.
        ValueError: see `open_model`; or the encoder is another, so latents have another meaning; or
            the pictures have another size.
    """
    name = config.decoder or config.autoencoder
    drawing = open_beside(config.decoder, autoencoder) if config.decoder else autoencoder
    if drawing.meaning != autoencoder.meaning:
        raise ValueError(
            f"models.decoder: {name} has another encoder than {config.autoencoder}, so its latents "
            "have another meaning; name one that `python -m pretraining decoder --from "
            f"{config.autoencoder}` made, or none"
        )
    if drawing.upsampling != upsampling:
        raise ValueError(
            f"{name} draws {drawing.upsampling} pixels for a latent along a side, not "
            f"{upsampling}; set data.picture_size to {drawing.upsampling} times unet.latent_size"
        )
    return drawing


def open_beside(name: str, autoencoder: VAEWrapper) -> VAEWrapper:
    """A whole autoencoder, or the given one with the decoder of a local folder that holds it alone.

    Raises:
        FileNotFoundError: see `open_model`.
        ValueError: see `open_model`; or the decoder was made for another encoder, or is damaged.
    """
    folder = Path(locate(name))
    if not (folder / DECODER_FILE).is_file():
        return VAEWrapper.from_pretrained(name)
    description, weights, encoder = _read(folder)
    if encoder != rounded_encoder(autoencoder):
        raise ValueError(
            f"the decoder {name} was made for another encoder than that of the latents, which have "
            "another meaning; name one that was made for it, or none"
        )
    with quiet():
        model = type(autoencoder.autoencoder).from_config(description)
    own = autoencoder.autoencoder.state_dict()
    kept = {key: value for key, value in own.items() if not key.startswith(PARTS)}
    try:
        model.load_state_dict(weights | kept)
    except RuntimeError as error:
        raise ValueError(
            f"{folder / DECODER_FILE} does not fit its config.json: {error}"
        ) from error
    return VAEWrapper(model)


def _read(folder: Path) -> tuple[dict[str, object], dict[str, Tensor], str | None]:
    """The autoencoder's description, the decoder's weights, and the encoder they were made for."""
    try:
        description = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        with safe_open(folder / DECODER_FILE, "pt") as file:
            weights = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118
            return description, weights, (file.metadata() or {}).get("encoder")
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"the decoder in {folder} cannot be read: {error}") from error


def rounded_encoder(vae: VAEWrapper) -> str:
    """The fingerprint of the encoder in float16: the same of a copy in float16 and in float32."""
    model: AutoencoderKL | AutoencoderTiny = copy.deepcopy(vae.autoencoder)
    return VAEWrapper(model.half().float()).meaning[0]


def save_decoder_alone(vae: VAEWrapper, folder: Path) -> None:
    """Save what `open_beside` reads, in the place of a whole autoencoder that is there."""
    weights = {
        key: value.half().cpu().contiguous()
        for key, value in vae.autoencoder.state_dict().items()
        if key.startswith(PARTS)
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name in WEIGHTS:
        (folder / name).unlink(missing_ok=True)
    vae.autoencoder.save_config(folder)
    save_file(weights, folder / DECODER_FILE, metadata={"encoder": rounded_encoder(vae)})
