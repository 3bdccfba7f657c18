"""Opens the weak model of autoguidance: early averaged weights of the same run.

Guidance by the empty caption pushes pictures towards what is typical of their caption; guidance by
a worse model of the same kind, under the same caption, pushes them away from that model's errors
(Karras et al. 2024, arXiv 2406.02507). A checkpoint of the first fifth of a run is such a model,
and costs nothing.
"""

from pathlib import Path

from diffusers import UNet2DConditionModel

from models.custom_unet_celeba_ldm import build_unet
from training import checkpoints


def open_weak_unet(folder: Path, epoch: int) -> UNet2DConditionModel:
    """The averaged weights at the end of an epoch, on the CPU.

    Args:
        folder: a run folder.
        epoch: counted from 1.

    Raises:
        FileNotFoundError: no checkpoint of that epoch; names those that there are.
        ValueError: the checkpoint is damaged.
    """
    finished = {
        number: path
        for path in checkpoints.checkpoints(folder)
        for number, within in [checkpoints.progress_in_name(path)]
        if not within
    }
    if epoch not in finished:
        there = ", ".join(map(str, sorted(finished))) or "none"
        raise FileNotFoundError(
            f"sampling.guide_epoch: no checkpoint of epoch {epoch} in {folder} (those of epochs "
            f"{there} are there); choose another, or sampling.guide_epoch=none, the empty caption"
        )
    checkpoint = checkpoints.load_checkpoint(finished[epoch])
    unet = build_unet(checkpoint.config.unet)
    checkpoints.load_weights(unet, checkpoint.ema, finished[epoch])
    return unet.eval().requires_grad_(False)
