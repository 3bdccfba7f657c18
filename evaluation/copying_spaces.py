"""In which feature space copies are looked for: by what a network was taught, not by its place."""

from collections.abc import Sequence

from evaluation.features import FeatureNetwork

# What `FeatureNetwork.trained_on` may say, the best eye for one and the same picture first.
ORDER = (
    "identity of faces",
    "single images",  # self-supervised: each image is distinguished from all others
    "classes of ImageNet",
    "captions",
    "not said",
    "face attributes",  # faces that share attributes are made alike, whoever they are
)
MOST = 2


def copying_spaces(networks: Sequence[FeatureNetwork]) -> tuple[FeatureNetwork, ...]:
    """The two networks in whose features a copy shows best; one where there is one.

    A network that was taught face attributes is taken only where there is no other.

    Raises:
        ValueError: no network, or one that says an unknown training.
    """
    if not networks:
        raise ValueError("no feature network could be opened, so copies cannot be looked for")
    for network in networks:
        if network.trained_on not in ORDER:
            raise ValueError(
                f"{network.name} was trained on {network.trained_on!r}: not in {ORDER}"
            )
    ranked = sorted(networks, key=lambda network: ORDER.index(network.trained_on))
    chosen = [network for network in ranked if network.trained_on != ORDER[-1]]
    return tuple((chosen or ranked[:1])[:MOST])


def space_note(network: FeatureNetwork) -> str:
    """What a reader of a copying report has to know of its feature space."""
    note = f"{network.name}, taught {network.trained_on}"
    if network.trained_on == ORDER[-1]:
        note += ": blind to identity by its training, so that a copy of a person may pass"
    return note
