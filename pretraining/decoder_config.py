"""The settings of a decoder's fine-tuning. Nothing here imports torch."""

from dataclasses import dataclass

from settings import Section, setting


@dataclass(frozen=True)
class DecoderConfig(Section):
    """How a decoder is fine-tuned."""

    minutes: float = setting(20.0, above=0)
    batch_size: int = setting(8, min=1)
    learning_rate: float = setting(4e-4, above=0)
    # Of the discriminators. Where they win by far, the decoder learns nothing from them.
    discriminator_learning_rate: float = setting(2e-4, above=0)
    # How strongly the adversary pulls at the pictures, in multiples of the pixels' L1.
    adversarial_weight: float = setting(4.0, min=0)
    # Share of the time after which the decoder learns. The adversary, which starts from random
    # weights, learns from the start.
    adversarial_from: float = setting(0.1, min=0, max=0.9)
