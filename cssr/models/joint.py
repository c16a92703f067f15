"""The joint model: LQ image -> SR image and crack logits, in one of the forms in which the two networks are joined."""

import dataclasses
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from cssr.config.loading import model_config
from cssr.config.registry import Count, Registry
from cssr.config.schema import TILE_OVERLAP, ModelConfig
from cssr.data.batch import Outputs
from cssr.models.blocks import pad_to_multiple
from cssr.models.build_limit import build_limit
from cssr.models.dsrl import Upsample
from cssr.models.dsrl import dsrl as dual_network
from cssr.models.encoders import constant_features
from cssr.models.export import SETTINGS, load_export, read_export, write_export
from cssr.models.hub import came_from_hub, check_untrusted, fetch, is_hub_name, push, stage
from cssr.models.seg import SEG
from cssr.models.shipped import is_shipped, shipped_directory
from cssr.models.sr import SR
from cssr.models.tiling import Kept, Moments, Tiles, Whole, Windows, WithValid, moments_of, reduced_valid, valid_rows
from cssr.models.tta import ORIENTATIONS, mean_logits

FORMS = Registry("form of the joint model")
_GROUPS = {
    "kernel": re.compile(r"\.predictor\."),
    "blur_skip": re.compile(r"\.blur_skip\."),
    "encoder": re.compile(r"^seg\.(.+\.)?encoder\."),
}  # parameter groups beside `sr` and `seg`, by module name
_EPSILON = 1e-5  # added to variances
_KERNEL_TILES = 16  # of a large image from which its kernel is estimated, evenly over it
_LOGIT_BOUND = 1e-6  # probabilities of a super-resolved mask are kept this far from 0 and 1


class JointModel(nn.Module):
    """Base of all forms: normalisation, clipping, tiles, parameter groups, and the export.

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
        """SR in 0..1 where the setting says so: by default in evaluation only, as the published systems do."""
        if self.config.clip == "always" or (self.config.clip == "eval" and not self.training):
            return sr.clamp(0, 1)
        return sr

    def normalize(
        self, image: Tensor, moments: tuple[Tensor, Tensor] | None = None, valid: Tensor | None = None
    ) -> Tensor:
        """An image as segmentation takes it: per image and channel, by data-set statistics, or as it is.

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
        """Crack logits divided by the temperature, in evaluation mode."""
        return logits if self.training or self.config.temperature == 1 else logits / self.config.temperature

    def segment(self, x: Tensor, kernel: Tensor | None = None) -> tuple[Tensor, ...]:
        """Logits (B 1 H W each, main head first) of a normalised image of any size; the main head's calibrated.

        `kernel` (B 1 k k) goes to networks that take one. In evaluation mode with more than one of `orientations`: the
        main head's alone, of the mean probability (float32).
        """
        logits, *aux = self._averaged(x, kernel)
        return self.calibrate(logits), *aux

    def _averaged(self, x: Tensor, kernel: Tensor | None = None) -> tuple[Tensor, ...]:
        """`segment` before the calibration."""
        if self.training or self.orientations == 1:
            return self._upright(x, kernel)
        return (mean_logits(lambda *part: self._upright(*part)[0], x, kernel, self.orientations),)

    def _upright(self, x: Tensor, kernel: Tensor | None) -> tuple[Tensor, ...]:
        height, width = x.shape[-2:]
        padded = self._padded(x)
        outputs = self.seg(padded, kernel) if getattr(self.seg, "takes_kernel", False) else self.seg(padded)
        return tuple(logits[..., :height, :width] for logits in outputs)

    def encoder_features(self, x: Tensor) -> tuple[Tensor, ...]:
        """The segmentation encoder's feature maps of a normalised image, B C y x each.

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
        lq = self._taken(lq)
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

        forward = self._of_tiles(lq, tiles)

        def both(part: Tensor) -> Tensor:
            outputs = forward(self._taken(part))
            return torch.cat((outputs.sr, outputs.logits), 1)

        for rows in tiles.rows(both, lq, self.scale):
            kept.append(rows[:, :3])
            yield "sr", rows[:, :3]
            yield "logits", rows[:, 3:]

    def _of_tiles(self, lq: Windows, tiles: Tiles) -> Callable[[Tensor], Outputs]:
        """The forward pass of a stack of tiles of this image."""
        return self

    @property
    def rounds(self) -> int:
        """Number of passes of `infer_rows` over the tiles."""
        return 1

    def _taken(self, part: Tensor) -> Tensor:
        """A part of an image as the networks take it: on their device, float, 0..1."""
        part = part.to(self.mean.device, non_blocking=True)
        return part.float() / 255 if part.dtype == torch.uint8 else part

    def groups(self) -> dict[str, list[str]]:
        """Parameter names by the group that phases weigh and hold still.

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
        """The model of an export, in evaluation mode; nothing is downloaded unless `download` says so.

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
    """The parameter group of a parameter (or of a module, with a dot at its end) of this name."""
    special = (group for group, part in _GROUPS.items() if part.search(name))
    return next(special, "seg" if name.startswith("seg.") else "sr")


def parent_of(group: str) -> str:
    """The group with the learning-rate factor for `group` where a phase gives it none of its own."""
    return "seg" if group == "encoder" else group


class SRThenSeg(JointModel):
    """SR network, normalisation, segmentation network: CSSR and CSBSR."""

    def forward(
        self,
        lq: Tensor,
        kernel: Tensor | None = None,
        hr: Tensor | None = None,
        mix: Tensor | None = None,
        features: bool = False,
        valid: Tensor | None = None,
    ) -> Outputs:
        """SR and crack logits.

        Args:
            hr: B 3 H W, in training: what `mix` and `features` refer to.
            mix: B 1 H W, the share of HR in the image that is segmented; what is returned as SR is not mixed.
            features: whether the segmentation encoder's feature maps, of SR and of HR, are returned too.
            valid: B 1 H W, 1 on the pixels that hold data, which kernel and moments are of; None: all do.
        """
        sr, predicted = self._enlarged(lq, kernel, valid)
        sr = self.clip(sr)
        mixed = sr if mix is None else torch.lerp(sr, hr.to(sr.dtype), mix.to(sr.dtype))
        image = self.normalize(mixed, valid=valid)
        logits, *aux = self.segment(image, predicted)
        outputs = Outputs(sr=sr, logits=logits, kernel=predicted, aux=tuple(aux))
        if features:
            outputs.sr_features = self.encoder_features(image if mix is None else self.normalize(sr, valid=valid))
            with torch.no_grad():
                outputs.hr_features = self.encoder_features(self.normalize(hr, valid=valid))
        return outputs

    @torch.no_grad()
    def infer_rows(self, lq: Windows, tiles: Tiles, kept: Kept) -> Iterator[tuple[str, Tensor]]:
        """A predicted kernel is the mean over tiles' kernels; the normalisation sees the whole SR image."""
        kernel, moments, top = None, Moments(), 0
        if self._predicts_kernel:
            kernel = self._global_kernel(lq, tiles)
            yield "kernel", kernel
        for rows in tiles.rows(lambda x: self.sr(self._taken(x), _for_each_tile(kernel, x))[0], lq, self.scale):
            rows = self.clip(rows)
            valid = valid_rows(lq, top, rows.shape[-2], self.scale)
            moments.add(rows, None if valid is None else valid.to(rows.device))
            kept.append(rows)
            top += rows.shape[-2]
            yield "sr", rows
        statistics = moments.result()
        for rows in tiles.enlarged(self.scale).rows(lambda x: self._segmented(x, statistics, kernel), kept):
            yield "logits", rows

    @property
    def rounds(self) -> int:
        """One for the SR image, one for the cracks in it; the kernel is taken from a few tiles before."""
        return 2

    @property
    def _predicts_kernel(self) -> bool:
        return getattr(self.sr, "predicts_kernel", False)

    def _segmented(self, part: Tensor, moments: tuple[Tensor, Tensor], kernel: Tensor | None) -> Tensor:
        part = self._taken(part)
        mean, variance = (_for_each_tile(moment, part) for moment in moments)
        return self.segment(self.normalize(part, (mean, variance)), _for_each_tile(kernel, part))[0]

    def _enlarged(self, lq: Tensor, kernel: Tensor | None, valid: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """SR image and kernel, the latter predicted from the valid pixels where the network can."""
        if valid is None or not getattr(self.sr, "takes_valid", False):
            return self.sr(lq, kernel)
        return self.sr(lq, kernel, valid)

    def _weighed_kernel(self, x: Tensor) -> Tensor:
        """Kernel and share of valid pixels of tiles B 4 h w, as B k*k+1."""
        x = self._taken(x)
        valid = x[:, 3:]
        kernel = self._enlarged(x[:, :3], None, F.interpolate(valid, scale_factor=self.scale))[1]
        return torch.cat((kernel.flatten(1), valid.mean((1, 2, 3))[:, None]), 1)

    def _masked_kernel(self, lq: Windows, tiles: Tiles) -> Tensor:
        """The mean over tiles' kernels by how many of their pixels are valid; over all tiles where a few have none."""
        image = WithValid(lq)
        rows = torch.stack([*tiles.sampled(self._weighed_kernel, image, _KERNEL_TILES)])  # tiles B k*k+1
        if not (rows[..., -1].sum(0) > 0).all():
            rows = torch.stack([row for _, row in tiles.results(self._weighed_kernel, image)])
        weight = rows[..., -1:]
        kernel = (rows[..., :-1] * weight).sum(0) / weight.sum(0).clamp(min=1e-12)
        return kernel.view(len(kernel), 1, self.sr.kernel_size, -1)

    def _global_kernel(self, lq: Windows, tiles: Tiles) -> Tensor:
        if getattr(lq, "masked", False):
            return self._masked_kernel(lq, tiles)
        kernels = tiles.sampled(lambda x: self.sr(self._taken(x))[1], lq, _KERNEL_TILES)
        return torch.stack([*kernels]).mean(0)


def _for_each_tile(value: Tensor | None, part: Tensor) -> Tensor | None:
    """Repeat what belongs to each of B images for a stack of tiles of each."""
    return None if value is None else repeat(value, "b ... -> (n b) ...", n=len(part) // len(value))


class SegThenSR(JointModel):
    """Segmentation of the LQ image, then super-resolution of the mask ("inverse").

    Unverified against the published code, which has no numbers to compare with.
    """

    def forward(
        self,
        lq: Tensor,
        kernel: Tensor | None = None,
        valid: Tensor | None = None,
        moments: tuple[Tensor, Tensor] | None = None,
    ) -> Outputs:
        """`mask_sr` and its logits; `lq_logits` and `aux` are of LQ size, for `loss.seg=at_lq`.

        There is no SR image: `sr` is the bicubic enlargement, to look at. `moments`: as `normalize` takes them.
        """
        lq_logits, *aux = self._averaged(self.normalize(lq, moments, reduced_valid(valid, self.scale)))
        mask_sr = self.sr(lq_logits.sigmoid())[0]
        logits = self.calibrate(mask_sr.float().clamp(_LOGIT_BOUND, 1 - _LOGIT_BOUND).logit())
        sr = self.clip(F.interpolate(lq, scale_factor=self.scale, mode="bicubic"))
        return Outputs(sr=sr, logits=logits, aux=tuple(aux), lq_logits=lq_logits, mask_sr=mask_sr)

    def _of_tiles(self, lq: Windows, tiles: Tiles) -> Callable[[Tensor], Outputs]:
        """The normalisation sees the whole image."""
        moments, (height, width) = Moments(), lq.shape
        for top in range(0, height, tiles.side):
            strip = (top, 0, min(tiles.side, height - top), width)
            rows, valid = self._taken(lq.read(*strip)), lq.valid(*strip) if getattr(lq, "masked", False) else None
            moments.add(rows, None if valid is None else valid.to(rows.device))
        statistics = moments.result()
        return lambda part: self(part, moments=tuple(_for_each_tile(moment, part) for moment in statistics))


class Dual(JointModel):
    """One network with two heads (DSRL), as `sr`."""

    def forward(self, lq: Tensor, kernel: Tensor | None = None, valid: Tensor | None = None) -> Outputs:
        """SR, logits, and the two features that DSRL's affinity loss compares."""
        sr, logits, *features = self._both(lq)
        if not self.training and self.orientations > 1:
            logits = mean_logits(lambda part, _: self._both(part)[1], lq, None, self.orientations)
        return Outputs(sr=self.clip(sr), logits=self.calibrate(logits), features=tuple(features))

    def _both(self, lq: Tensor) -> tuple[Tensor, ...]:
        height, width = (side * self.scale for side in lq.shape[-2:])
        outputs = self.sr(pad_to_multiple(lq, getattr(self.sr, "stride", 1)))
        return tuple(x[..., :height, :width] for x in (*outputs[:2], *outputs[2]))


@FORMS.register
def sr_then_seg(config: ModelConfig, seg: dict[str, Any]) -> SRThenSeg:
    """`model.sr`, then `model.seg` on the SR image."""
    if config.sr.get("channels", 3) != 3:
        raise ValueError(f"model.sr.channels={config.sr['channels']!r}: images have 3; leave it out")
    model = SRThenSeg(config, SR.build(config.sr, scale=config.scale), SEG.build(seg))
    _check_kernel(model)
    return model


def _check_kernel(model: JointModel) -> None:
    """A segmentation network that takes the kernel needs an SR network that predicts one, of the same size."""
    if not getattr(model.seg, "takes_kernel", False):
        return
    if not getattr(model.sr, "predicts_kernel", False):
        raise ValueError(
            f"model.seg={model.config.seg['name']} needs the blur kernel, which model.sr={model.config.sr['name']} "
            "does not predict: model.sr=kbpn does"
        )
    if model.seg.kernel_size != model.sr.kernel_size:
        raise ValueError(
            f"model.seg.kernel_size={model.seg.kernel_size} must be that of model.sr, {model.sr.kernel_size}"
        )


@FORMS.register
def seg_then_sr(config: ModelConfig, seg: dict[str, Any]) -> SegThenSR:
    """`model.seg` on the LQ image, then `model.sr` on its probabilities (one channel)."""
    takes = SR.parameters(config.sr["name"])
    if "channels" not in takes:
        able = [name for name in SR.names() if "channels" in SR.parameters(name)]
        raise ValueError(
            f"model.form=seg_then_sr: model.sr={config.sr['name']} enlarges images only, not masks; "
            f"choose from {', '.join(able)}"
        )
    model = SegThenSR(config, SR.build(config.sr, scale=config.scale, channels=1), SEG.build(seg))
    if getattr(model.seg, "takes_kernel", False):
        raise ValueError(f"model.form=seg_then_sr: model.seg={seg['name']} needs a blur kernel, and none is predicted")
    return model


@FORMS.register
def dsrl(
    config: ModelConfig,
    fresh: bool,
    upsample: Upsample = "deconv",
    encoder: str = "resnet101",
    pretrained: bool | str = False,
    width: Count = 16,
    encoder_args: dict[str, Any] | None = None,
) -> Dual:
    """Dual super-resolution learning: one network for both; `model.sr` and `model.seg` have no effect.

    The settings are those of `cssr/models/dsrl.py`.
    """
    weights = pretrained if fresh else False
    return Dual(config, dual_network(config.scale, upsample, encoder, weights, width, encoder_args=encoder_args), None)


def build_model(config: ModelConfig, fresh: bool = False) -> JointModel:
    """The model that settings describe, with initial weights.

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
