"""Joint model: LQ image -> SR image and crack logits; `cssr/models/forms` defines how both networks are joined."""

import dataclasses
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from cssr.config.loading import model_config
from cssr.config.schema import TILE_OVERLAP, ModelConfig
from cssr.data.batch import Outputs
from cssr.models.blocks import pad_to_multiple
from cssr.models.build_limit import build_limit
from cssr.models.encoders import constant_features
from cssr.models.export import SETTINGS, load_export, read_export, write_export
from cssr.models.forms import FORMS
from cssr.models.hub import came_from_hub, check_untrusted, fetch, is_hub_name, push, stage
from cssr.models.shipped import is_shipped, shipped_directory
from cssr.models.tiling import Kept, Tiles, Whole, Windows, moments_of, reduced_valid
from cssr.models.tta import ORIENTATIONS, mean_logits

_GROUPS = {
    "kernel": re.compile(r"\.predictor\."),
    "blur_skip": re.compile(r"\.blur_skip\."),
    "encoder": re.compile(r"^seg\.(.+\.)?encoder\."),
}  # parameter groups beside `sr` and `seg`, by module name
_EPSILON = 1e-5  # added to variances


class JointModel(nn.Module):
    """Base class of all forms: normalisation, clipping, tiling, parameter groups, export.

    A form defines `forward(lq, kernel=None) -> Outputs` (`lq` B 3 h w float32, about 0..1; a `kernel` B 1 k k replaces
    the predicted one) and `sr` and `seg`, its networks; with `seg` None, `sr` does both.

    Args:
        config: the `model` settings, kept as `self.config` and written beside the weights.
        sr, seg: networks that keep the contracts of the registries.
    Attributes:
        orientations: how many flips and quarter turns (1..8) segmentation is averaged over in evaluation mode. 8 is
            test-time augmentation; it is no setting of the model, and exports do not keep it.
    """

    constant_features = staticmethod(constant_features)

    def __init__(self, config: ModelConfig, sr: nn.Module, seg: nn.Module | None):
        super().__init__()
        self.config, self.scale = config, config.scale
        self.sr, self.seg = sr, seg
        self.trained_on: dict[str, Any] = {}  # cssr/models/training_range.py; of an export that says it
        self.orientations = 1
        self.register_buffer("mean", rearrange(torch.tensor(config.mean), "c -> 1 c 1 1"), persistent=False)
        self.register_buffer("std", rearrange(torch.tensor(config.std), "c -> 1 c 1 1"), persistent=False)

    @property
    def orientations(self) -> int:
        """See the class; ValueError for a number that is none of 1 to 8."""
        return self._orientations

    @orientations.setter
    def orientations(self, count: int) -> None:
        if type(count) is not int or not 1 <= count <= ORIENTATIONS:
            raise ValueError(f"model.orientations is {count!r}; give 1 to {ORIENTATIONS} flips and quarter turns")
        self._orientations = count

    def clip(self, sr: Tensor) -> Tensor:
        """Clip SR to 0..1 as `model.clip` says: by default in evaluation only, as the published systems."""
        if self.config.clip == "always" or (self.config.clip == "eval" and not self.training):
            return sr.clamp(0, 1)
        return sr

    def normalize(
        self, image: Tensor, moments: tuple[Tensor, Tensor] | None = None, valid: Tensor | None = None
    ) -> Tensor:
        """Normalise an image for segmentation: per image and channel, by data-set statistics, or not at all.

        `moments`: mean and variance (B 3 1 1 each) of the image of which this is a part. `valid`: B 1 H W, 1 on the
        pixels that the image's own moments are of; None: all.
        """
        if self.config.normalize == "instance":
            mean, variance = moments or moments_of(image.float(), valid)
            return (image.float() - mean) * (variance + _EPSILON).rsqrt()
        if self.config.normalize == "dataset":
            return (image - self.mean) / self.std
        return image

    def calibrate(self, logits: Tensor) -> Tensor:
        """Divide crack logits by the temperature, in evaluation mode only."""
        return logits if self.training or self.config.temperature == 1 else logits / self.config.temperature

    def segment(self, x: Tensor, kernel: Tensor | None = None) -> tuple[Tensor, ...]:
        """Logits (B 1 H W each, main head first) of a normalised image of any size; the main head's calibrated.

        `kernel` (B 1 k k) goes to networks that take one. In evaluation mode with more than one of `orientations`: the
        main head's alone, of the mean probability (float32).
        """
        logits, *aux = self._uncalibrated(x, kernel)
        return self.calibrate(logits), *aux

    def _uncalibrated(self, x: Tensor, kernel: Tensor | None = None) -> tuple[Tensor, ...]:
        """Logits as of `segment`, without calibration."""
        if self.training or self.orientations == 1:
            return self._segment_once(x, kernel)
        return (mean_logits(lambda *part: self._segment_once(*part)[0], x, kernel, self.orientations),)

    def _segment_once(self, x: Tensor, kernel: Tensor | None) -> tuple[Tensor, ...]:
        height, width = x.shape[-2:]
        padded = self._padded(x)
        outputs = self.seg(padded, kernel) if getattr(self.seg, "takes_kernel", False) else self.seg(padded)
        return tuple(logits[..., :height, :width] for logits in outputs)

    def encoder_features(self, x: Tensor) -> tuple[Tensor, ...]:
        """Feature maps of the segmentation encoder for a normalised image, B C y x each.

        Their gradient reaches the image alone: the weights are constants, and BatchNorm's statistics do not see it.
        """
        return self.constant_features(self.seg.encoder, self._padded(x))

    def _padded(self, x: Tensor) -> Tensor:
        return pad_to_multiple(x, getattr(self.seg, "stride", 1))

    @torch.no_grad()
    def infer(
        self,
        lq: Tensor,
        tile: int = 0,
        overlap: int = TILE_OVERLAP,
        progress: Callable = iter,
        valid: Tensor | None = None,
    ) -> Outputs:
        """`forward` for images of any size: larger ones in overlapping tiles of `tile` LQ pixels, blended.

        What a form takes from the whole image, it takes once. `progress` wraps the iteration over tiles (e.g. tqdm).
        `valid`: B 1 H W, 1 on the pixels of the SR image that hold data (`cssr/utils/valid_pixels.py`); None: all do.
        `lq`: B 3 h w, uint8 0..255 or float 0..1, on any device. Raises: ValueError for one of another shape.
        """
        if lq.ndim != 4 or lq.shape[1] != 3 or not lq.numel():
            raise ValueError(f"images as B x 3 x height x width are needed, got {[*lq.shape]}")
        lq = self._to_input(lq)
        if not tile or max(lq.shape[-2:]) <= tile:
            return self(lq) if valid is None else self(lq, valid=valid)
        outputs: dict[str, list[Tensor]] = {}
        for name, rows in self.infer_rows(
            Whole(lq, reduced_valid(valid, self.scale)), Tiles(tile, overlap, progress=progress), Kept()
        ):
            outputs.setdefault(name, []).append(rows)
        return Outputs(**{name: torch.cat(rows, -2) for name, rows in outputs.items()})

    @torch.no_grad()
    def infer_rows(self, lq: Windows, tiles: Tiles, kept: Kept) -> Iterator[tuple[str, Tensor]]:
        """`infer` in tiles for an image that is read by windows; results come in rows.

        Args:
            lq: gives B 3 h w, uint8 0..255 or float 0..1, on any device.
            tiles: LQ pixels.
            kept: takes the rows of the SR image, and gives windows of it.
        Yields: `sr` and `logits` (B C n W rows from the top down) and at once, where there is one, `kernel` (B 1 k k).
        """

        forward = self._tile_forward(lq, tiles)

        def both(part: Tensor) -> Tensor:
            outputs = forward(self._to_input(part))
            return torch.cat((outputs.sr, outputs.logits), 1)

        for rows in tiles.rows(both, lq, self.scale):
            kept.append(rows[:, :3])
            yield "sr", rows[:, :3]
            yield "logits", rows[:, 3:]

    def _tile_forward(self, lq: Windows, tiles: Tiles) -> Callable[[Tensor], Outputs]:
        """Function that maps a stack of tiles of this image to their outputs."""
        return self

    @property
    def rounds(self) -> int:
        """Number of passes of `infer_rows` over the tiles."""
        return 1

    def _to_input(self, part: Tensor) -> Tensor:
        """Move a part of an image to the model's device and convert it to float, 0..1."""
        part = part.to(self.mean.device, non_blocking=True)
        return part.float() / 255 if part.dtype == torch.uint8 else part

    def groups(self) -> dict[str, list[str]]:
        """Parameter names by group, for the learning rates and freezing of phases.

        `sr`; `kernel`, its kernel predictors (modules called `predictor`); `seg`; `encoder`, that of the segmentation
        network; `blur_skip`, what modulates the segmentation features by the kernel.
        """
        groups: dict[str, list[str]] = {group: [] for group in ("sr", "kernel", "seg", "encoder", "blur_skip")}
        for name, _ in self.named_parameters():
            groups[group_of(name)].append(name)
        return {group: names for group, names in groups.items() if names or group in ("sr", "seg")}

    def save_pretrained(self, directory: str | Path, half: bool = False, **facts: Any) -> None:
        """Write `model.safetensors` and `config.json` (the model settings, the version, and `facts`).

        Weights are float32; with `half`, those of convolutions and matrices float16.
        """
        settings = dataclasses.asdict(self.config)
        settings["sr"] = getattr(self.sr, "settings", settings["sr"])  # those that need no file to start from
        write_export(self, {"model": settings, **facts}, directory, half)

    def push_to_hub(
        self, name: str, license: str, run: str | Path | None = None, private: bool = True, token: str | None = None
    ) -> str:
        """Push the weights, the settings and a model card to the Hugging Face Hub.

        Args:
            name: `owner/name` there. license: of the weights, as the Hub names it (apache-2.0, cc-by-4.0, other, ...).
            run: run directory that these weights come from: the card is written from it.
            private: whether only its owner sees it. token: None: the one of `hf auth login`.
        Returns: the address of the commit.
        Raises: ValueError, one line, for what cannot be written or is refused.
        """
        run = None if run is None else Path(run)
        facts = {} if run is None else {k: v for k, v in read_export(run / "export").items() if k != "model"}
        with TemporaryDirectory() as folder:
            export, out = Path(folder, "export"), Path(folder, "pushed")
            self.save_pretrained(export, **facts)
            return push(stage(name, license, export, out, run), name, private, token)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        download: bool = False,
        revision: str | None = None,
        token: str | bool | None = None,
        trust: bool = False,
    ) -> "JointModel":
        """Load the model of an export, in evaluation mode; nothing is downloaded unless `download` is true.

        Args:
            source: directory of an export, the name of a model that comes with the package (`small-x4`), or
                `owner/name` on the Hugging Face Hub, in this machine's cache of it.
            download: whether to fetch from the Hub: `config.json` and `model.safetensors`, never any code.
            revision, token: of the Hub: branch, tag or commit; for private models.
            trust: whether an export from the Hub may import the modules that it names, which runs their code, and read
                files and addresses that its settings name.
        Raises: ValueError, one line, for a missing, damaged or changed file, one of a newer version, weights of another
            architecture, a model that is not in the cache.
        """
        if is_shipped(source):
            directory = shipped_directory(source)
        else:
            directory = fetch(str(source), download, revision, token) if is_hub_name(source) else Path(source)
        settings = read_export(directory)
        imports = settings.get("imports", [])
        if came_from_hub(directory) and not trust:
            check_untrusted(settings["model"], imports, str(source))
        try:
            model = build_model(model_config(settings["model"], imports))
        except ValueError as error:
            raise ValueError(f"{directory / SETTINGS}: {error}") from None
        load_export(model, directory, settings.get("sha256"))
        model.trained_on = dict(settings.get("trained_on") or {})
        return model.eval()


def group_of(name: str) -> str:
    """Parameter group of a parameter name (or of a module name that ends with a dot)."""
    special = (group for group, part in _GROUPS.items() if part.search(name))
    return next(special, "seg" if name.startswith("seg.") else "sr")


def parent_of(group: str) -> str:
    """Group from which `group` inherits its learning-rate factor if a phase sets none."""
    return "seg" if group == "encoder" else group


def build_model(config: ModelConfig, fresh: bool = False) -> JointModel:
    """Build the model of these settings, with initial weights.

    Args:
        fresh: whether pretrained encoders are fetched as the settings say; only a new training run wants that.
    Raises:
        ValueError: one line that names the setting.
    """

    def build(fresh: bool) -> JointModel:
        seg = {key: value for key, value in config.seg.items() if fresh or key != "pretrained"}
        return FORMS.build(config.form, config=config, seg=seg, fresh=fresh)

    with build_limit(fresh, partial(build, False)):
        return build(fresh)
