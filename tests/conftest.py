"""Fixtures that several rooms share."""

import gc
import json
import sys

import numpy as np
import pytest
import torch
from ending import no_process_left_behind as no_process_left_behind
from paths import SHARED, need
from reference_weights import filled_state

from cssr.dataset_preparation.sources import SOURCES
from cssr.degradations import DEGRADATIONS
from cssr.degradations.blurs import BLURS
from cssr.losses import LOSSES
from cssr.models.seg import SEG
from cssr.models.sr import SR

torch.set_num_threads(1)


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Garbage is not looked for among all that collection imports and lists, neither then nor in the tests."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests start processes, compile and deploy: on a busy machine, more than the minutes of the others."""
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(900))


@pytest.fixture
def golden():
    """The arrays of one golden file, by name."""
    return lambda name: dict(np.load(need(SHARED / "golden" / f"{name}.npz")))


@pytest.fixture
def reference_state():
    """A published model's state_dict, filled by the rule of the golden vectors' README."""
    return lambda name: filled_state(json.loads(need(SHARED / "golden" / "manifest.json").read_text()), name)


@pytest.fixture
def own_parts():
    """Whatever a test registers, and the modules of `my_lab` that do, are forgotten after it."""
    registries = (SR, SEG, LOSSES, DEGRADATIONS, BLURS, SOURCES)
    before = [{name: registry.get(name) for name in registry.names()} for registry in registries]
    yield
    for registry, factories in zip(registries, before):
        registry._factories = factories
    for name in [name for name in sys.modules if name.split(".")[0] == "my_lab"]:
        del sys.modules[name]
