"""The joint model: LQ image -> SR image -> crack logits, and what stands between the two networks."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cssr import __version__
from cssr.batch import Outputs
from cssr.config import TILE_OVERLAP, ModelConfig, from_dict
from cssr.models.blocks import pad_to_multiple
from cssr.models.seg import SEG
from cssr.models.sr import SR
from cssr.tiling import tiled

WEIGHTS, SETTINGS = "model.safetensors", "config.json"  # the two files of an export


class JointModel(nn.Module):
    """SR network, normalisation, segmentation network.

    Args:
        config: the `model` settings, kept as `self.config` and written beside the weights.
        sr, seg: networks that keep the zoos' contracts.
    """

    def __init__(self, config: ModelConfig, sr: nn.Module, seg: nn.Module):
        super().__init__()
        self.config, self.scale = config, config.scale
        self.sr, self.seg = sr, seg
        self.register_buffer("mean", torch.tensor(config.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(1, 3, 1, 1), persistent=False)

    def forward(self, lq: Tensor, kernel: Tensor | None = None) -> Outputs:
        """SR and crack logits of `lq` (B 3 h w float32, about 0..1); a given `kernel` replaces the predicted one."""
        sr, predicted = self.sr(lq, kernel)
        sr = self.clip(sr)
        logits, *aux = self.segment(self.normalize(sr))
        return Outputs(sr=sr, logits=logits, kernel=predicted, aux=tuple(aux))

    def clip(self, sr: Tensor) -> Tensor:
        """SR in 0..1 where the setting says so: by default in evaluation only, as the published systems do."""
        if self.config.clip == "always" or (self.config.clip == "eval" and not self.training):
            return sr.clamp(0, 1)
        return sr

    def normalize(self, sr: Tensor) -> Tensor:
        """SR as segmentation takes it: per image and channel, by data-set statistics, or as it is."""
        if self.config.normalize == "instance":
            return F.instance_norm(sr.float(), eps=1e-5)
        if self.config.normalize == "dataset":
            return (sr - self.mean) / self.std
        return sr

    def segment(self, x: Tensor) -> tuple[Tensor, ...]:
        """Logits (B 1 H W each, main head first) of a normalised image of any size."""
        height, width = x.shape[-2:]
        padded = pad_to_multiple(x, getattr(self.seg, "stride", 1))
        return tuple(logits[..., :height, :width] for logits in self.seg(padded))

    @torch.no_grad()
    def infer(self, lq: Tensor, tile: int = 0, overlap: int = TILE_OVERLAP, progress: Callable = iter) -> Outputs:
        """`forward` for images of any size: larger ones in overlapping tiles of `tile` LQ pixels, blended.

        What is global is taken once for the whole image: a predicted kernel is the mean over the tiles' kernels, the
        normalisation sees the whole SR image. `progress` wraps the iteration over tiles (e.g. tqdm).
        """
        if not tile or max(lq.shape[-2:]) <= tile:
            return self(lq)
        kernel = self._global_kernel(lq, tile, overlap, progress)
        sr = self.clip(tiled(lambda x: self.sr(x, kernel)[0], lq, tile, overlap, self.scale, progress))
        x = self.normalize(sr)
        side, margin = tile * self.scale, overlap * self.scale
        logits = tiled(lambda part: self.segment(part)[0], x, side, margin, 1, progress)
        return Outputs(sr=sr, logits=logits, kernel=kernel)

    def _global_kernel(self, lq: Tensor, tile: int, overlap: int, progress: Callable) -> Tensor | None:
        kernels: list[Tensor] = []

        def collect(part: Tensor) -> Tensor:
            kernel = self.sr(part)[1]
            if kernel is not None:
                kernels.append(kernel)
            return part

        if not getattr(self.sr, "predicts_kernel", False):
            return None
        tiled(collect, lq, tile, overlap, 1, progress)
        return torch.stack(kernels).mean(0)

    def groups(self) -> dict[str, list[str]]:
        """Parameter names by group: `sr` and `seg`, the groups that phases weigh and hold still."""
        names = [name for name, _ in self.named_parameters()]
        return {group: [n for n in names if n.startswith(f"{group}.")] for group in ("sr", "seg")}

    def save_pretrained(self, directory: str | Path, **facts: Any) -> None:
        """Write `model.safetensors` (float32) and `config.json` (the model settings, the version, and `facts`)."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        weights = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        save_file({name: v.float() if v.is_floating_point() else v for name, v in weights.items()}, directory / WEIGHTS)
        settings = {"model": dataclasses.asdict(self.config), "cssr_version": __version__, **facts}
        (directory / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> "JointModel":
        """The model of an export, in evaluation mode; nothing is downloaded.

        Raises: ValueError, one line, for a missing or damaged file or weights of another architecture.
        """
        directory = Path(directory)
        model = build_model(from_dict({"model": read_export(directory)["model"]}).model)
        load_weights(model, directory / WEIGHTS)
        return model.eval()


def read_export(directory: str | Path) -> dict[str, Any]:
    """The `config.json` of an export; ValueError if it is not there or damaged."""
    path = Path(directory) / SETTINGS
    if not path.is_file():
        raise ValueError(f"no export in {directory} ({SETTINGS} is missing)")
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        return {**settings, "model": dict(settings["model"])}
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is damaged: it holds no model settings") from None


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Fill `model` from a safetensors file; ValueError names the keys that are missing, extra or misshapen."""
    assign_state(model, read_tensors(path), str(path))


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; ValueError, one line, if it is missing or damaged."""
    if not Path(path).is_file():
        raise ValueError(f"no weights at {path}")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as safetensors: {' '.join(str(error).split())}") from None


def assign_state(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """`load_state_dict` with an error of one line; nothing is loaded unless everything fits."""
    own = model.state_dict()
    faults = {
        "missing": sorted(own.keys() - state.keys()),
        "extra": sorted(state.keys() - own.keys()),
        "misshapen": [
            f"{k} {list(state[k].shape)} instead of {list(v.shape)}"
            for k, v in own.items()
            if k in state and state[k].shape != v.shape
        ],
    }
    if any(faults.values()):
        parts = [
            f"{len(keys)} {kind} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
            for kind, keys in faults.items()
            if keys
        ]
        raise ValueError(f"{source} is of another architecture than the settings: {'; '.join(parts)}")
    model.load_state_dict(state)


def build_model(config: ModelConfig, fresh: bool = False) -> JointModel:
    """The model that settings describe, with initial weights.

    Args:
        fresh: whether pretrained encoders are fetched as the settings say; only a new training run wants that.
    Raises:
        ValueError: one line that names the setting.
    """
    seg: dict[str, Any] = dict(config.seg)
    if not fresh:
        seg.pop("pretrained", None)
    return JointModel(config, SR.build(config.sr, scale=config.scale), SEG.build(seg))
