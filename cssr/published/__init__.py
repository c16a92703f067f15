"""The published systems' weight files: how each of their networks' keys are called here, one file a network.

Contract: `RULES[NAME]` holds, for the zoo's network of that name, pairs of a pattern that a whole published key matches
and a function of the match that gives our key, or None for a tensor to leave out (a duplicate, or one never used).
"""

import re
from collections.abc import Callable

from cssr.config.registry import import_siblings

Rule = tuple[str, Callable[[re.Match], str | None]]

RULES: dict[str, list[Rule]] = {}
LAYER = {"conv": "0", "deconv": "0", "layer": "0", "act": "1"}  # of a convolution and its activation
PROJECTION_PARTS = {"1": "there", "2": "back", "3": "again"}  # of a back-projection

import_siblings(__name__, __path__)
