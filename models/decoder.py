"""Another decoder for the same latents, made by `python -m pretraining decoder`.

Its folder is a whole autoencoder, whose encoder must be the same, or holds the decoder alone: the
description of the autoencoder, and `decoder.safetensors` with half of its weights.
"""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from models.loading import locate, quiet
from models.vae_wrapper import VAEWrapper
from sections import ModelsConfig

ALONE = "decoder.safetensors"
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
            f"{config.autoencoder}` made"
        )
    if drawing.upsampling != upsampling:
        raise ValueError(
            f"{name} draws {drawing.upsampling} pixels for a latent along a side, not "
            f"{upsampling}; set data.picture_size to {drawing.upsampling} times unet.latent_size"
        )
    return drawing


def open_beside(name: str, autoencoder: VAEWrapper) -> VAEWrapper:
    """A whole autoencoder, or the given one with the decoder of a folder that holds it alone.

    Raises:
        FileNotFoundError, ValueError: see `open_decoder`.
    """
    folder = Path(locate(name))
    if not (folder / ALONE).is_file():
        return VAEWrapper.from_pretrained(name)
    try:
        description = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        with safe_open(folder / ALONE, "pt") as file:
            encoder = (file.metadata() or {}).get("encoder")
            weights = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"models.decoder: {folder} cannot be read: {error}") from error
    if encoder != autoencoder.meaning[0]:
        raise ValueError(
            f"models.decoder: {name} was made for another encoder ({encoder}) than that of the "
            f"latents ({autoencoder.meaning[0]})"
        )
    with quiet():
        model = type(autoencoder.autoencoder).from_config(description)
    own = autoencoder.autoencoder.state_dict()
    kept = {key: value for key, value in own.items() if not key.startswith(PARTS)}
    try:
        model.load_state_dict(weights | kept)
    except RuntimeError as error:
        raise ValueError(f"models.decoder: {folder / ALONE} does not fit: {error}") from error
    return VAEWrapper(model)


def save_decoder_alone(vae: VAEWrapper, folder: Path) -> None:
    """Save what `open_beside` reads, in float16."""
    weights = {
        key: value.half().cpu().contiguous()
        for key, value in vae.autoencoder.state_dict().items()
        if key.startswith(PARTS)
    }
    folder.mkdir(parents=True, exist_ok=True)
    vae.autoencoder.save_config(folder)
    save_file(weights, folder / ALONE, metadata={"encoder": vae.meaning[0]})
