"""The published systems' weight files as ours: `python -m cssr.convert FILE.pth --recipe R.yaml --out DIR`."""

from cssr.utils import interrupts

if __name__ == "__main__":  # before imports that take seconds
    interrupts.answer()

import pickle
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from cssr.arguments import conversion_parser

if __name__ == "__main__":  # --help and mistakes are answered without the imports below, which take seconds
    conversion_parser(__doc__).parse_intermixed_args()

import torch
from torch import Tensor

from cssr.config.loading import load_config
from cssr.config.schema import ModelConfig
from cssr.degradations import DEGRADATIONS
from cssr.models.export import assign_state
from cssr.models.joint import build_model
from cssr.published import RULES, Rule

_PREFIXES = {"sr_model": "sr", "segmentation_model": "seg", "parallel_model": "sr"}  # of the published joint models
_WEIGHTLESS = ("none", "bicubic")
_REMEDY = {
    "sr": "SR network: add model.sr=bicubic, or model.sr=none model.scale=1, to take the segmentation network alone",
    "seg": "segmentation network: add model.seg=none to take the SR network alone",
}


def convert_state(state: Mapping[str, Tensor], network: str) -> dict[str, Tensor]:
    """A published network's state_dict under our keys.

    Args:
        state: its tensors; keys may begin with `module.`.
        network: the zoo name of the network they belong to.
    Raises: ValueError for a network without rules, or naming the keys that no rule knows.
    """
    if network not in RULES:
        raise ValueError(f"no conversion for {network!r}; there is one for {', '.join(RULES)}")
    converted, unknown = {}, []
    for key, value in state.items():
        ours = _translate(key.removeprefix("module."), RULES[network])
        if ours == "":
            unknown.append(key)
        elif ours is not None:
            converted[ours] = value
    if unknown:
        raise ValueError(
            f"{len(unknown)} keys do not belong to {network}: {', '.join(unknown[:3])}{', ...' * (len(unknown) > 3)}"
        )
    return converted


def _translate(key: str, rules: list[Rule]) -> str | None:
    for pattern, ours in rules:
        if match := re.fullmatch(pattern, key):
            return ours(match)
    return ""


def convert_joint(state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """A published checkpoint under the keys of our joint model.

    Args:
        state: a joint model's tensors (`sr_model.*`, `segmentation_model.*`, or `parallel_model.*` for DSRL), those of
            one of its networks alone, or those of a bare network; keys may begin with `module.`.
        config: the model that it is to fill.
    Raises: ValueError naming the keys that belong nowhere, or the network of `config` that the file does not have.
    """
    state = {key.removeprefix("module."): value for key, value in state.items()}
    networks = {"sr": "dsrl"} if config.form["name"] == "dsrl" else {"sr": config.sr["name"], "seg": config.seg["name"]}
    parts = _parts(state, networks)
    missing = [group for group, network in networks.items() if network not in _WEIGHTLESS and group not in parts]
    if missing:
        raise ValueError(f"the file holds no {_REMEDY[missing[0]]}")
    converted: dict[str, Tensor] = {}
    for group, part in parts.items():
        ours = convert_state(part, networks[group])
        converted |= {f"{group}.{key}": value for key, value in ours.items()}
    return converted


def _parts(state: Mapping[str, Tensor], networks: Mapping[str, str]) -> dict[str, dict[str, Tensor]]:
    """The tensors of each network, by our group."""
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        prefix, _, rest = key.partition(".")
        group = _PREFIXES.get(prefix) or _owner(key, networks)
        if group not in networks:
            raise ValueError(
                f"not a published checkpoint of this recipe's model: the key {key} belongs to none of its networks "
                f"({', '.join(networks.values())})"
            )
        parts.setdefault(group, {})[rest if prefix in _PREFIXES else key] = value
    return parts


def _owner(key: str, networks: Mapping[str, str]) -> str | None:
    """The group of a bare network's key."""
    return next((g for g, network in networks.items() if _translate(key, RULES.get(network, [])) != ""), None)


def _read(path: Path) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise ValueError(f"no file at {path}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # whose own text advises to run what the file holds
        raise ValueError(
            f"{path} cannot be read as a state_dict: it is damaged, or holds more than tensors, and code in it is not "
            "run; save the state_dict alone: torch.save(model.state_dict(), FILE)"
        ) from None
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as a state_dict: {str(error).splitlines()[0]}") from None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} holds no state_dict (tensors by name)")
    return state


def main(arguments: list[str] | None = None) -> None:
    """Command line: a published checkpoint to an export."""
    options = conversion_parser(__doc__).parse_intermixed_args(arguments)
    try:
        config = load_config(options.recipe, options.overrides)
        model = build_model(config.model)
        state = _read(options.file)
        assign_state(model, convert_joint(state, model.config), str(options.file))
        degrade = DEGRADATIONS.build(config.degradation, scale=config.model.scale)
    except ValueError as error:
        sys.exit(f"error: {error}")
    facts = {"source": options.file.name, "imports": config.imports}
    model.save_pretrained(options.out, degradation=config.degradation, resampler=degrade.resampler, **facts)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    sys.exit(interrupts.run(main))
