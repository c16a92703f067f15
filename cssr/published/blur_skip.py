"""Published keys of PSPNet with BlurSkip: those of PSPNet, and modulations and convolutions numbered in turn."""

import re
from collections.abc import Callable

import cssr.published.pspnet  # noqa: F401  (its rules are needed first)
from cssr.published import RULES

_MODULATION = {"0.layer": "first", "0.act": "act", "1.layer": "second"}
_CONV = {"layer": "0", "norm": "1"}


def _of_net(ours: Callable[[re.Match], str]) -> Callable[[re.Match], str]:
    return lambda m: f"net.{ours(m)}"


RULES["blur_skip"] = [
    (
        r"blur_skip\.(\d+)\.conv_(scale|shift)\.(0\.layer|0\.act|1\.layer)\.(\w+)",
        lambda m: f"blur_skip.{int(m[1]) // 2}.modulation.{m[2]}.{_MODULATION[m[3]]}.{m[4]}",
    ),
    (r"blur_skip\.(\d+)\.(layer|norm)\.(\w+)", lambda m: f"blur_skip.{int(m[1]) // 2}.conv.{_CONV[m[2]]}.{m[3]}"),
    *((pattern, _of_net(ours)) for pattern, ours in RULES["pspnet"]),
]
