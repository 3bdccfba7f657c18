"""Exact nearest neighbours in pieces: the full distance matrix never exists."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from evaluation.checks import require_enough, require_pair

CHUNK = 1024


class Neighbors(NamedTuple):
    """Of each query its k nearest rows of the reference, the nearest first."""

    distances: Tensor  # float64 (N, k)
    indices: Tensor  # int64 (N, k)


def distance_blocks(
    query: Tensor, reference: Tensor, chunk: int = CHUNK
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Euclidean distances as (query rows, reference rows, block of at most chunk x chunk)."""
    for start in range(0, len(query), chunk):
        for other in range(0, len(reference), chunk):
            rows, columns = slice(start, start + chunk), slice(other, other + chunk)
            yield rows, columns, torch.cdist(query[rows], reference[columns])


def nearest(query: Tensor, reference: Tensor, k: int = 1, chunk: int = CHUNK) -> Neighbors:
    """The k nearest reference rows of each query row, by Euclidean distance, exactly.

    Args:
        query, reference: float (N, D) and (M, D).
        chunk: at most chunk x chunk distances are in memory at once.

    Raises:
        ValueError: features of different width, or not finite.
        TooFewSamples: the reference has fewer than k rows.
    """
    query, reference = require_pair(query, reference, least=1)
    require_enough(len(reference), k, f"the search for {k} nearest neighbours")
    indices = torch.empty(len(query), k, dtype=torch.int64)
    best, places = torch.empty(0), torch.empty(0, dtype=torch.int64)
    for rows, columns, block in distance_blocks(query, reference, chunk):
        own = torch.arange(len(reference))[columns].expand_as(block)
        if columns.start > 0:
            block, own = torch.cat([best, block], 1), torch.cat([places, own], 1)
        best, order = block.topk(min(k, block.shape[1]), largest=False)
        places = own.gather(1, order)
        if columns.stop >= len(reference):
            indices[rows] = places
    return _sorted_exactly(query, reference, indices, chunk)


def _sorted_exactly(query: Tensor, reference: Tensor, indices: Tensor, chunk: int) -> Neighbors:
    # cdist multiplies matrices, so a copy has a distance of about 1e-7 instead of 0.
    step = max(1, chunk // indices.shape[1])
    pieces = zip(query.split(step), indices.split(step), strict=True)
    exact = torch.cat([(rows[:, None] - reference[own]).norm(dim=-1) for rows, own in pieces])
    distances, order = exact.sort(dim=1, stable=True)
    return Neighbors(distances, indices.gather(1, order))
