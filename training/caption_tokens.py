"""Tokens of the training captions, for a device that encodes captions itself.

Writing and tokenizing the captions of a batch takes longer than the rest of making it. A face's few
wordings come in turn, so the tokens of each are kept: 308 bytes a caption at L = 77.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor


class CaptionTokens:
    """Finds the tokens of a caption when it is first asked for.

    Args:
        caption: number of a caption -> its text.
        tokenize: texts -> tokens (b, L), none of them negative.
        count: how many captions there are.
    """

    def __init__(
        self,
        caption: Callable[[int], str],
        tokenize: Callable[[Sequence[str]], Tensor],
        count: int,
    ) -> None:
        self.caption, self.tokenize = caption, tokenize
        length = tokenize([""]).shape[1]
        # One more than each token; 0: not known. Memory of zeros is taken when it is written.
        self.shifted = np.zeros((count, length), np.int32)

    def __call__(self, rows: np.ndarray) -> Tensor:
        """Tokens (b, L) of captions by their numbers (b,)."""
        unknown = np.unique(rows[self.shifted[rows, 0] == 0])
        if len(unknown):
            texts = [self.caption(int(row)) for row in unknown]
            self.shifted[unknown] = self.tokenize(texts).numpy() + 1
        return torch.from_numpy(self.shifted[rows] - 1)
