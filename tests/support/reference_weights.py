"""Weights filled by the rule of the golden vectors' README, by which published networks are compared."""

import zlib

import numpy as np
import torch


def filled_state(manifest: dict, name: str) -> dict[str, torch.Tensor]:
    return {
        key: torch.from_numpy(_fill(key, shape, dtype, manifest["fill_seed"]))
        for key, (shape, dtype) in manifest["models"][name]["state_dict"].items()
    }


def _fill(key: str, shape: list[int], dtype: str, seed: int) -> np.ndarray:
    if not dtype.startswith("float"):
        return np.zeros(shape, dtype)
    draws = (
        np.random.RandomState((zlib.crc32(key.encode()) + seed) % 2**32)
        .standard_normal(int(np.prod(shape)))
        .reshape(shape)
    )
    if key.endswith("running_var"):
        value = 1 + 0.2 * np.abs(draws)
    elif key.endswith("running_mean"):
        value = 0.1 * draws
    elif len(shape) >= 2:
        value = draws * np.sqrt(2 / np.prod(shape[1:]))
    elif key.endswith("weight"):
        value = np.full(shape, 0.25) if draws.size == 1 else 0.6 + 0.05 * draws
    else:
        value = 0.05 * draws
    return value.astype(np.float32)
