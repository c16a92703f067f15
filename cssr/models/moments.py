"""Mean and variance of images, whole or in parts."""

import torch
from torch import Tensor


def moments_of(image: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and (biased) variance of each image and channel: B C H W to B C 1 1 twice.

    `F.instance_norm` of torch 2.14 has a wrong gradient for a single image that comes in channels_last.
    """
    variance, mean = torch.var_mean(image, (-2, -1), correction=0, keepdim=True)
    return mean, variance


class Moments:
    """Of each image and channel, over all pixels: parts are B C n W each.

    Nothing is kept of a part: thousands of small tensors between large ones would keep the allocator from using the
    large ones' memory again.
    """

    def __init__(self) -> None:
        self._count = 0
        self._mean = self._variance = torch.zeros(())

    def add(self, rows: Tensor) -> None:
        """One part more, combined as by Chan, Golub and LeVeque (1979, eq. 2.1), which loses no digits where sums of
        squares would; in float64 where the device has it.
        """
        precise = torch.float32 if rows.device.type == "mps" else torch.float64
        mean, variance = (x.to(precise) for x in moments_of(rows.float()))
        count = rows.shape[-2] * rows.shape[-1]
        share = count / (self._count + count)
        self._mean, self._variance, self._count = self._mean.to(mean), self._variance.to(mean), self._count + count
        apart = mean - self._mean
        self._variance = self._variance + share * (variance - self._variance) + share * (1 - share) * apart**2
        self._mean = self._mean + share * apart

    def result(self) -> tuple[Tensor, Tensor]:
        """Mean and (biased) variance, B C 1 1 float32 each."""
        return self._mean.float(), self._variance.float()
