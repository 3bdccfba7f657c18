"""Another decoder for the same latents, made by `python -m pretraining decoder`.

Its folder is a whole autoencoder, whose encoder must be the same, or holds the decoder alone: the
description of the autoencoder, and `decoder.safetensors` with half of its weights, in float16.
"""

import copy
import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from config import ModelsConfig
from files import replacing
from models.loading import WEIGHTS, address, locate, quiet
from models.vae_wrapper import VAEWrapper

DECODER_FILE = "decoder.safetensors"
PARTS = ("decoder.", "post_quant_conv.")  # of an autoencoder: what latents pass
ENCODER_PARTS = ("encoder", "quant_conv")  # and what images pass
OTHER_ENCODER = (
    "was made for another encoder than that of models.autoencoder, so for other latents; name one "
    "that `python -m pretraining decoder --from <models.autoencoder>` made, or none"
)


def open_decoder(
    config: ModelsConfig, autoencoder: VAEWrapper | None, upsampling: int
) -> VAEWrapper:
    """What decodes a run's latents: `models.decoder` where it is named, or the autoencoder.

    Args:
        autoencoder: of the latents. None: a decoder alone is opened without it, and can only
            decode; in the other cases it is opened here.
        upsampling: pixels for one latent position along a side.

    Raises:
        FileNotFoundError: see `open_model`.
        ValueError: see `open_model`; or the decoder is for other latents, or for pictures of
            another size.
    """
    name = config.decoder or config.autoencoder
    if autoencoder is None and is_alone(config.decoder):
        opened = _open_alone(Path(locate(name)))
    else:
        autoencoder = autoencoder or VAEWrapper.from_pretrained(config.autoencoder)
        opened = open_beside(config.decoder, autoencoder) if config.decoder else autoencoder
        if opened.latent_key != autoencoder.latent_key:
            raise ValueError(f"models.decoder: {name} {OTHER_ENCODER}")
    if opened.upsampling != upsampling:
        raise ValueError(
            f"{name} makes {opened.upsampling} pixels of a latent along a side, not {upsampling}; "
            f"set data.picture_size to {opened.upsampling} times unet.latent_size"
        )
    return opened


def open_beside(name: str, autoencoder: VAEWrapper) -> VAEWrapper:
    """A whole autoencoder, or a decoder alone joined with the given encoder; raises as
    `open_decoder`.
    """
    if not is_alone(name):
        return VAEWrapper.from_pretrained(name)
    opened = _open_alone(Path(locate(name)))
    add_encoder(opened, autoencoder)
    return opened


def add_encoder(decoder: VAEWrapper, autoencoder: VAEWrapper) -> None:
    """Let a decoder that was opened alone encode as well.

    Raises:
        ValueError: it was made for another encoder, whose latents mean something else.
    """
    if decoder.made_for != rounded_encoder(autoencoder):
        raise ValueError(f"models.decoder {OTHER_ENCODER}")
    for part in ENCODER_PARTS:
        if hasattr(autoencoder.autoencoder, part):
            setattr(decoder.autoencoder, part, getattr(autoencoder.autoencoder, part))


def whole_autoencoder(vae: VAEWrapper, name: str) -> tuple[AutoencoderKL | AutoencoderTiny, bool]:
    """The autoencoder with both halves, for an export, and whether its encoder works.

    Where the encoder of a decoder alone is not available its weights are NaN: what is encoded with
    them cannot be taken for a picture.

    Args:
        name: of the autoencoder of the latents.
    """
    if not vae.has_encoder:
        try:
            add_encoder(vae, VAEWrapper.from_pretrained(name))
        except FileNotFoundError as error:
            print(f"exported without a working encoder, for text-to-image alone: {error}")
            with quiet():
                whole = type(vae.autoencoder).from_config(vae.autoencoder.config)
            for parameter in whole.parameters():
                parameter.data.fill_(torch.nan)
            whole.load_state_dict(vae.autoencoder.state_dict(), strict=False)
            return whole, False
    return vae.autoencoder, True


def is_alone(name: str | None) -> bool:
    """Whether a name is that of a local folder which holds a decoder alone.

    Raises:
        FileNotFoundError: it is neither a folder nor the form of a hub id.
    """
    return name is not None and (Path(address(name, "decoder")[0]) / DECODER_FILE).is_file()


def _open_alone(folder: Path) -> VAEWrapper:
    kinds = {kind.__name__: kind for kind in (AutoencoderKL, AutoencoderTiny)}
    try:
        description = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        with quiet():
            model = kinds[description.pop("_class_name")].from_config(description)
        for part in ENCODER_PARTS:
            if hasattr(model, part):
                setattr(model, part, None)  # its weights are random
        with safe_open(folder / DECODER_FILE, "pt") as file:
            weights = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118
            made_for = (file.metadata() or {}).get("encoder")
        model.load_state_dict(weights)
    # No JSON, of another class, cut short, other shapes.
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise ValueError(f"the decoder in {folder} cannot be read: {error}") from error
    opened = VAEWrapper(model)
    opened.made_for = made_for
    return opened


def rounded_encoder(vae: VAEWrapper) -> str:
    """The fingerprint of the encoder in float16: the same of a copy in float16 and in float32."""
    model: AutoencoderKL | AutoencoderTiny = copy.deepcopy(vae.autoencoder)
    return VAEWrapper(model.half().float()).latent_key[0]


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
    with replacing(folder / DECODER_FILE) as temporary:
        save_file(weights, temporary, metadata={"encoder": rounded_encoder(vae)})
