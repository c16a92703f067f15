"""Mean and variance of images, whole or in parts, over their valid pixels."""

import torch
from torch import Tensor


def moments_of(image: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean and (biased) variance of each image and channel: B C H W to B C 1 1 twice.

    `valid`: B 1 H W, 1 on the pixels that count, 0 elsewhere; None: all do. An image without any has moments of 0.
    `F.instance_norm` of torch 2.14 has a wrong gradient for a single image that comes in channels_last.
    """
    if valid is None:
        variance, mean = torch.var_mean(image, (-2, -1), correction=0, keepdim=True)
        return mean, variance
    weight = valid.to(image.dtype)
    weight = weight / weight.sum((-2, -1), keepdim=True).clamp(min=1)
    mean = (image * weight).sum((-2, -1), keepdim=True)
    return mean, ((image - mean).square() * weight).sum((-2, -1), keepdim=True)


class Moments:
    """Of each image and channel, over all pixels that count: parts are B C n W each.

    Nothing is kept of a part: thousands of small tensors between large ones would keep the allocator from using the
    large ones' memory again.
    """

    def __init__(self) -> None:
        self._count: Tensor | int = 0
        self._mean = self._variance = torch.zeros(())

    def add(self, rows: Tensor, valid: Tensor | None = None) -> None:
        """Add a part, combined as by Chan, Golub and LeVeque (1979, eq. 2.1), which loses no digits where sums of
        squares would; in float64 where the device has it. `valid`: B 1 n W, as for `moments_of`.
        """
        precise = torch.float32 if rows.device.type == "mps" else torch.float64
        rows = rows.float() if valid is None else rows.to(precise)
        mean, variance = (x.to(precise) for x in moments_of(rows, valid))
        if valid is None:
            count = rows.shape[-2] * rows.shape[-1]
            share = count / (self._count + count)
        else:
            count = valid.to(precise).sum((-2, -1), keepdim=True)
            share = count / (self._count + count).clamp(min=1)
        self._mean, self._variance, self._count = self._mean.to(mean), self._variance.to(mean), self._count + count
        apart = mean - self._mean
        self._variance = self._variance + share * (variance - self._variance) + share * (1 - share) * apart**2
        self._mean = self._mean + share * apart

    def result(self) -> tuple[Tensor, Tensor]:
        """Mean and (biased) variance, B C 1 1 float32 each."""
        return self._mean.float(), self._variance.float()
