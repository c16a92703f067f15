"""A user's own stages between reading and cropping: `data.stages`, dotted names of functions of a sample."""

import importlib
import inspect
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import webdataset as wds

from cssr.config.loading import import_modules
from cssr.config.registry import did_you_mean
from cssr.data.dataset import Sample
from cssr.data.remote import DataError
from cssr.data.sampler import rng
from cssr.utils.text import message_of

Stage = Callable[[Sample, np.random.Generator], Sample]


class ReadSample(NamedTuple):
    """A sample read for a position of the run, with the messages of damaged samples that it replaces."""

    position: int
    sample: Sample
    damaged: list[str]


def find_stages(names: Sequence[str]) -> list[Stage]:
    """The functions of `data.stages`, imported. ValueError names one that is not there."""
    return [_find(name) for name in names]


def _find(name: str) -> Stage:
    module, _, function = name.rpartition(".")
    if not module:
        raise ValueError(f"data.stages: {name!r} names no module; write it as my_lab.stages.{name or 'function'}")
    import_modules([module], "data.stages")
    stage = getattr(importlib.import_module(module), function, None)
    if not callable(stage):
        names = [key for key, value in vars(importlib.import_module(module)).items() if callable(value)]
        raise ValueError(f"data.stages: {module} has no function {function!r}{did_you_mean(function, names)}")
    try:
        inspect.signature(stage).bind("sample", "generator")
    except TypeError as error:
        raise ValueError(f"data.stages: {name} cannot be called with a sample and a generator: {error}") from None
    except ValueError:  # of a function in C, which does not say what it takes
        pass
    return stage


def own_stages(names: Sequence[str], seed: int) -> list[Any]:
    """`data.stages` as stages of a `webdataset.DataPipeline` over `ReadSample`.

    Each draws from a generator of its own, of (seed, position, number of the stage): it changes no draw of another.
    """
    stages = zip(names, find_stages(names))
    return [wds.map(partial(_apply, stage, name, seed, number)) for number, (name, stage) in enumerate(stages)]


def _apply(stage: Stage, name: str, seed: int, number: int, read: ReadSample) -> ReadSample:
    key = read.sample.key
    try:
        sample = stage(read.sample, rng(seed, read.position, 0x57A6E, number))
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        reason = f"{type(error).__name__}: {message_of(error)}"
        raise DataError(f"data.stages: {name} failed on {key}: {reason} ({frame.filename}:{frame.lineno})") from error
    if not isinstance(sample, Sample):
        raise DataError(f"data.stages: {name} returned {type(sample).__name__} for {key}: return the sample")
    image, mask = np.asarray(sample.image), np.asarray(sample.mask)
    if image.dtype != np.uint8 or mask.dtype != np.uint8 or image.shape != (*mask.shape, 3):
        raise DataError(
            f"data.stages: {name} made image {image.dtype} {image.shape} and mask {mask.dtype} {mask.shape} of "
            f"{key}: give uint8 H W 3 and uint8 H W"
        )
    sample.image, sample.mask = image, mask
    return read._replace(sample=sample)
