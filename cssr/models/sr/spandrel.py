"""Every SR architecture that the library `spandrel` knows, with a community weight file or with fresh weights.

The library finds out from a file which architecture it holds, and with which arguments. These are kept as `settings`,
so that an export or a checkpoint is rebuilt without the file. Networks of scale 1 (restoration) work as well.

Beside what the library does for inference: the SR image is not clipped, batches of any size go through at once, and all
parameters stay in the graph, also those that an architecture skips in training (SPAN's merged convolutions, say).
"""

import inspect
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from cssr.config.registry import did_you_mean
from cssr.models.export import assign_state
from cssr.models.sr import SR

_Known = tuple[type[nn.Module], Any]  # an architecture: its class, and the library's description of it

_PURPOSES = ("SR", "Restoration")  # not the library's networks for faces, nor those that fill holes
_SCALES = ("scale", "upscale", "up_scale", "upscale_factor", "upscaling_factor")  # what architectures call the scale
_PROBE = 16  # side of the image that a new network is tried on, pixels


class Spandrel(nn.Module):
    """An architecture of the library with our interface; those of one channel get each colour by itself.

    Args:
        model: the architecture. facts: the library's description of it (scale, channels, sizes, how to call it).
        settings: those of a component that rebuilds it, with fresh weights and no file.
    """

    def __init__(self, model: nn.Module, facts: Any, settings: dict[str, Any]):
        super().__init__()
        self.model, self.settings, self.scale = model, settings, facts.scale
        self._channels, self._sizes = facts.input_channels, facts.size_requirements
        self._run = facts._call_fn  # private; the public call clips, and switches gradients off

    def forward(self, lq: Tensor, kernel: Tensor | None = None) -> tuple[Tensor, None]:
        height, width = lq.shape[-2:]
        x = rearrange(lq.clone(), "b (n c) h w -> (b n) c h w", c=self._channels)  # a copy: RCAN writes into its input
        sr = self._run(self.model, self._padded(x))[..., : height * self.scale, : width * self.scale]
        sr = rearrange(sr, "(b n) c h w -> b (n c) h w", b=lq.shape[0])
        if self.training and torch.is_grad_enabled():  # every parameter in the graph: DDP waits for all
            sr = sr + 0 * torch.stack([parameter.sum() for parameter in self.model.parameters()]).sum()
        return sr, None

    def _padded(self, x: Tensor) -> Tensor:
        """Extended at the right and bottom as the library does it: mirrored as far as that goes, then by the edge."""
        height, width = x.shape[-2:]
        right, bottom = self._sizes.get_padding(width, height)
        mirrored = (0, min(right, width - 1), 0, min(bottom, height - 1))
        x = F.pad(x, mirrored, "reflect") if any(mirrored) else x
        rest = (0, right - mirrored[1], 0, bottom - mirrored[3])
        return F.pad(x, rest, "replicate") if any(rest) else x


@SR.register
def spandrel(
    scale: int, weights: str | None = None, architecture: str | None = None, arguments: Mapping[str, Any] | None = None
) -> Spandrel:
    """A network of the library spandrel (an optional extra: `pip install 'cssr[spandrel]'`).

    Args:
        weights: a community weight file (.pth, .pt, .ckpt, .safetensors); its architecture and arguments are read
            out. It is needed for a fresh start only: the network's `settings` say the rest.
        architecture: without `weights`: a class of the library (Compact, ESRGAN, SwinIR, RealPLKSR, ...).
        arguments: of the architecture, in place of its defaults or of those that were read. What an architecture
            calls the scale is model.scale by default.
    Raises:
        ValueError: one line: no such file, or one that the library cannot load; a network for another scale, for
            another purpose, or for other images than RGB or grey ones; arguments that do not go together.
    """
    known, state, given = _architectures(_library()), None, dict(arguments or {})
    if weights is not None:
        facts = _loaded(_library(), weights)
        _check(facts, scale, weights)
        detected = _name_of(facts.model, known)
        if architecture not in (None, detected):
            raise ValueError(_error(f"{weights} holds a {detected}, not a {architecture}; leave architecture out"))
        architecture, given, state = detected, {**_plain(facts.model), **given}, facts.model.state_dict()
    if architecture is None:
        raise ValueError(_error("needs weights=FILE, or an architecture to train from scratch"))
    network = _built(scale, architecture, given, known)
    if state is not None:
        assign_state(network.model, state, weights)
    return network


def _built(scale: int, architecture: str, arguments: dict[str, Any], known: Mapping[str, _Known]) -> Spandrel:
    """The network with fresh weights, tried once."""
    if architecture not in known:
        raise ValueError(_error(f"unknown architecture {architecture!r}{did_you_mean(architecture, known)}"))
    kind, description = known[architecture]
    takes = inspect.signature(kind).parameters
    for name, parameter in takes.items():
        if name in _SCALES and isinstance(parameter.default, int):
            arguments.setdefault(name, scale)
    what = f"{architecture} with {arguments}"
    try:
        model = kind(**arguments)
        facts = description.load(model.state_dict())
    except Exception as error:  # arguments can make an architecture stumble over anything
        raise ValueError(_error(f"{what} cannot be built: {_reason(error)}; it takes {', '.join(takes)}")) from error
    _check(facts, scale, what)
    network = Spandrel(model, facts, {"name": "spandrel", "architecture": architecture, "arguments": _plain(model)})
    _try(network, what)
    return network


def _library() -> Any:
    try:
        import spandrel as library  # the library, not this module
    except ImportError:
        raise ValueError("model.sr=spandrel needs the library spandrel: pip install 'cssr[spandrel]'") from None
    return library


def _architectures(library: Any) -> dict[str, _Known]:
    """The architectures' classes, by the names under which the library exports them, and their descriptions.

    A description (the library's `Architecture`) may have several classes; what was added to its registry counts too.
    """
    architectures = {}
    for support in library.MAIN_REGISTRY:
        exported = vars(sys.modules[type(support.architecture).__module__])
        architectures |= {
            name: (kind, support.architecture)
            for name, kind in exported.items()
            if isinstance(kind, type) and hasattr(kind, "hyperparameters")
        }
    return architectures


def _loaded(library: Any, weights: str) -> Any:
    """The library's descriptor of a weight file."""
    if not isinstance(weights, (str, Path)) or not Path(weights).is_file():
        raise ValueError(_error(f"no weight file at {weights}"))
    try:
        return library.ModelLoader().load_from_file(weights)
    except library.UnsupportedModelError:
        knows = f"spandrel {library.__version__} knows {', '.join(_architectures(library))}"
        raise ValueError(_error(f"{weights} holds no architecture that the library knows; {knows}")) from None
    except Exception as error:  # a damaged file can make the library stumble over anything
        raise ValueError(_error(f"{weights} cannot be loaded: {_reason(error)}")) from error


def _check(facts: Any, scale: int, what: str) -> None:
    """Return whether the network that the library describes can be an SR network here."""
    if facts.purpose not in _PURPOSES:
        raise ValueError(_error(f"{what} is a network for {facts.purpose}; it must be for {' or '.join(_PURPOSES)}"))
    channels = facts.input_channels, facts.output_channels
    if channels not in ((3, 3), (1, 1)):
        raise ValueError(_error(f"{what} takes and gives {channels} channels; it must be RGB (3, 3) or grey (1, 1)"))
    if facts.scale != scale:
        raise ValueError(_error(f"{what} is a network for scale {facts.scale}, but model.scale is {scale}"))


def _name_of(model: nn.Module, known: Mapping[str, _Known]) -> str:
    for name, (kind, _) in known.items():
        if type(model) is kind:
            return name
    raise ValueError(_error(f"{type(model).__name__} cannot be built again without its file; the library hides it"))


def _plain(model: nn.Module) -> dict[str, Any]:
    """The arguments that `model` was built with, as JSON holds them; classes and functions are left at the default."""
    defaults, plain = inspect.signature(type(model)).parameters, {}
    for name, value in model.hyperparameters.items():
        try:
            plain[name] = json.loads(json.dumps(value))
        except TypeError:
            if value is not defaults[name].default:
                raise ValueError(_error(f"the argument {name}={value!r} cannot be kept in an export")) from None
    return plain


def _try(network: Spandrel, what: str) -> None:
    """Enlarge two images of noise: reveals incompatible arguments, and networks for one image at a time."""
    lq = torch.rand(2, 3, _PROBE, _PROBE, generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            shape = network.eval()(lq)[0].shape
    except Exception as error:
        raise ValueError(_error(f"{what} cannot enlarge a batch of images: {_reason(error)}")) from error
    if shape != (2, 3, _PROBE * network.scale, _PROBE * network.scale):
        raise ValueError(_error(f"{what} makes images of {list(shape)} from two of {_PROBE} x {_PROBE} pixels"))
    network.train()


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _error(text: str) -> str:
    return f"SR network 'spandrel': {text}"
