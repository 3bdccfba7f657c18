"""Labels that are those of the images pass, wherever they come from; others are refused."""

from pathlib import Path

import numpy as np
import pytest

from custom_datasets import verification
from custom_datasets.celeba_files import ATTRIBUTE_FILE, ATTRIBUTES, image_number, read_attributes
from custom_datasets.celeba_hq_dataset import CelebAHQ
from custom_datasets.splits import official_split
from custom_datasets.verification import (
    CELEBA_RATES,
    check_alignment,
    check_rates,
    check_table,
    is_in_official_order,
    known_of_celeba,
    known_of_count,
    known_of_indices,
)

MALE = ATTRIBUTES.index("Male")


def drawn_labels(count: int, rates: np.ndarray) -> np.ndarray:
    return np.random.default_rng(0).random((count, 40)) < rates


def test_rates_beside_the_known_ones() -> None:
    rates = verification.block_rates()[0]  # 24 % men, of all 37 %
    good = drawn_labels(1000, rates)
    known = known_of_indices(np.arange(1000))
    lines = check_rates(good, known)
    assert len(lines) == len(CELEBA_RATES) and "known 0.240" in lines[0]
    check_rates(good, known_of_count(1000))
    for wrong, cause in ((~good, "sign is reversed"), (np.roll(good, 1, 1), "another order")):
        for what in (known, known_of_count(1000)):
            with pytest.raises(ValueError, match=rf"rates differ: .*{cause}"):
                check_rates(wrong, what)
        check_rates(wrong[:500], known_of_count(500))  # too few to tell


def test_faces_of_another_place_and_of_celeba_are_told() -> None:
    late = drawn_labels(3000, verification.block_rates()[20:].mean(0))
    with pytest.raises(ValueError, match=r"Male .*known 0\.229.*renumbered"):
        check_rates(late, known_of_indices(np.arange(3000)))
    late[:, MALE] = True  # faces of one sex are a chosen part
    check_rates(late, known_of_indices(np.arange(3000)))
    rates = verification.block_rates().mean(0).copy()
    rates[[ATTRIBUTES.index("Wearing_Lipstick")]] = 0.1
    for name, rate in CELEBA_RATES.items():
        rates[ATTRIBUTES.index(name)] = rate
    of_celeba = drawn_labels(5000, rates)
    check_rates(of_celeba, known_of_celeba(5000))
    with pytest.raises(ValueError, match="import it with --celeba"):
        check_rates(of_celeba, known_of_indices(np.arange(30_000)))


def test_a_whole_table_is_checked_and_a_part_is_not() -> None:
    rates = verification.block_rates().mean(0)
    rows = {f"{i}.jpg": row for i, row in enumerate(~drawn_labels(30_000, rates))}
    with pytest.raises(ValueError, match=r"list\.txt: .*sign is reversed"):
        check_table("list.txt", rows)
    check_table("list.txt", dict(list(rows.items())[:29_000]))
    check_table("list.txt", {name: ~row for name, row in rows.items()})


@pytest.fixture(scope="module")
def labels(real_faces: Path) -> np.ndarray:
    rows = read_attributes(real_faces / ATTRIBUTE_FILE, image_number)
    return np.stack([rows[index] for index in range(30_000)])


def test_the_facts_are_those_of_the_official_file(labels: np.ndarray) -> None:
    counts = labels.reshape(30, 1000, 40).sum(1)
    assert verification._facts() == {
        "counts": counts.tolist(),
        "digests": verification.digests(labels),
    }
    check_table(ATTRIBUTE_FILE, {f"{i}.jpg": row for i, row in enumerate(labels)})


@pytest.mark.parametrize("count", [1000, 1500, 5000, 15_000, 30_000])
def test_any_stretch_and_any_part_of_the_real_labels_passes(labels: np.ndarray, count: int) -> None:
    rng = np.random.default_rng(0)
    parts = [np.arange(start, start + count) for start in range(0, 30_001 - count, 700)]
    parts += [np.sort(rng.choice(30_000, count, replace=False)) for _ in range(10)]
    for indices in parts:
        check_rates(labels[indices], known_of_indices(indices))
        check_rates(labels[indices], known_of_count(count))


def test_each_split_of_the_real_labels_passes(labels: np.ndarray) -> None:
    for split in range(3):
        indices = np.flatnonzero(official_split() == split)
        check_rates(labels[indices], known_of_indices(indices))


def test_the_official_order_is_recognised(labels: np.ndarray) -> None:
    for count in (100, 1000, 1234, 30_000):
        assert is_in_official_order(labels[:count])
        assert not is_in_official_order(np.roll(labels, 1, 0)[:count])
    swapped = labels[:1000].copy()
    swapped[[3, 4]] = swapped[[4, 3]]
    assert not is_in_official_order(swapped)
    assert not is_in_official_order(labels[:99])  # open


# --- the probe ---


def test_the_probe_sees_a_shift_by_one() -> None:
    rng = np.random.default_rng(0)
    labels = rng.random(2000) < 0.4
    thumbnails = rng.random((2000, 576)) + 0.15 * labels[:, None] * rng.random(576)
    assert verification.probe_auc(thumbnails, labels) > 0.9
    assert 0.4 < verification.probe_auc(thumbnails, np.roll(labels, 1)) < 0.6


def test_real_faces_line_up_and_shifted_ones_do_not(real_faces: Path) -> None:
    faces = CelebAHQ(real_faces, "train", 64)
    paths, attributes = [faces.path(i) for i in range(1000)], faces.attributes[:1000]
    assert check_alignment(paths, attributes) > 0.85
    for shift, place in ((1, "after"), (-1, "before")):
        with pytest.raises(ValueError, match=f"do not line up.* row {place} .*shifted by one"):
            check_alignment(paths, np.roll(attributes, shift, axis=0))
    order = np.random.default_rng(0).permutation(1000)
    with pytest.raises(ValueError, match=r"do not line up.*another order"):
        check_alignment(paths, attributes[order])


def test_the_probe_tells_nothing_of_few_faces_or_one_sex(real_faces: Path) -> None:
    faces = CelebAHQ(real_faces, "train", 64)
    assert check_alignment([faces.path(i) for i in range(999)], faces.attributes[:999]) is None
    women = np.flatnonzero(~faces.attributes[:, MALE])[:1000]
    assert check_alignment([faces.path(i) for i in women], faces.attributes[women]) is None
