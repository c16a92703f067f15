"""Mean and variance of an image that comes in parts."""

import torch
from torch import Tensor


class Moments:
    """Of each image and channel, over all pixels: parts are B C n W each."""

    def __init__(self) -> None:
        self._counts: list[int] = []
        self._parts: list[tuple[Tensor, Tensor]] = []

    def add(self, rows: Tensor) -> None:
        """One part more."""
        variance, mean = torch.var_mean(rows.float(), (-2, -1), correction=0, keepdim=True)
        self._counts.append(rows.shape[-2] * rows.shape[-1])
        self._parts.append((mean, variance))

    def result(self) -> tuple[Tensor, Tensor]:
        """Mean and (biased) variance, B C 1 1 float32 each, combined in float64 on the CPU, which every machine has.

        The variance of the whole is the mean of the parts' variances and the variance of their means (Chan, Golub and
        LeVeque 1979, eq. 2.1), which loses no digits where sums of squares would.
        """
        means, variances = (torch.stack(parts).cpu().double() for parts in zip(*self._parts))
        shares = torch.tensor(self._counts, dtype=torch.float64).view(-1, 1, 1, 1, 1) / sum(self._counts)
        mean = (means * shares).sum(0)
        variance = ((variances + (means - mean) ** 2) * shares).sum(0)
        return tuple(x.float().to(self._parts[0][0].device) for x in (mean, variance))
