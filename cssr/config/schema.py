"""The settings of a run: dataclasses hold every default and a comment for each.

A recipe (YAML) holds differences from these defaults only, or from those of the recipe beside it that its `base` names;
`a.b=c` on the command line differs from the recipe. A string is taken literally (`train.run_dir=out #2`, `007`),
numbers are decimal, and a `~` that begins a path is the home.
Components (a network, a loss, a degradation, a schedule) are written `{name: dbpn, stages: 6}` or just `dbpn`;
their arguments and defaults are those of the function of that name. Naming another component than the layer below
drops that layer's arguments.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from cssr.utils.annotations import Within, fits, shortened

BatchNorm = Literal["rank", "sync", "held", "encoder_held"]
RESULTS = ("sr", "prob", "mask", "overlay", "kernel")  # what a prediction writes
TILE = 256  # LQ pixels a side of a tile of a prediction
TILE_AT_SCALE_1 = 512  # the same where nothing is enlarged: what a CPU's cache holds of a small network
PRECISIONS = ("float32", "bfloat16")  # of the networks in a prediction
TILE_OVERLAP = 32  # of neighbouring tiles in evaluation and prediction, LQ pixels
ADDRESSES = "addresses"  # in a setting's metadata: paths or addresses, one, several, or by weight


def _component(name: str, **arguments: Any) -> Any:
    return field(default_factory=lambda: {"name": name, **arguments})


def _addresses() -> Any:
    return field(default=None, metadata={ADDRESSES: True})


@dataclass
class ModelConfig:
    scale: int = 4  # HR pixels per LQ pixel along each side; 1 with sr=none (the HR upper bound)
    form: dict[str, Any] = _component("sr_then_seg")  # how they are joined: cssr/models/forms
    sr: dict[str, Any] = _component("dbpn")  # SR network: cssr/models/sr
    seg: dict[str, Any] = _component("unet")  # segmentation network: cssr/models/seg
    normalize: Literal["instance", "dataset", "none"] = "instance"  # what is done to SR before segmentation
    mean: list[float] = field(
        default_factory=lambda: [0.4741, 0.4937, 0.5048]
    )  # RGB mean for normalize=dataset (CSSR's)
    std: list[float] = field(default_factory=lambda: [0.1621, 0.1532, 0.1523])  # RGB standard deviation, likewise
    clip: Literal["eval", "always", "never"] = "eval"  # when SR is clipped to 0..1 before segmentation
    temperature: float = 1.0  # crack logits are divided by it in evaluation mode; a run's export has the fitted one


@dataclass
class DataConfig:
    train: Any = _addresses()  # shards: directory, tars by a pattern, address; several by weight: {dir_a: 3, dir_b: 1}
    val: Any = _addresses()  # shards (or several sets, concatenated) for validation
    crop: int = 224  # side of the square HR training crop, pixels; a multiple of model.scale
    resized_crop: list[float] | None = None  # [low, high]: crop this share of the area, resized to `crop`
    hflip: float = 0.5  # probability of a horizontal mirror
    vflip: float = 0.0  # probability of a vertical mirror
    crack_share: float = 0.0  # share of the crops that must show a crack pixel, of images that have one
    photometric: bool = False  # CSSR's photometric distortion: brightness, contrast, saturation, hue, channel order
    stages: list[str] = field(default_factory=list)  # functions of yours before the crop: [my_lab.stages.clahe]
    suffixes: dict[str, Any] = field(default_factory=dict)  # of foreign shards, if unclear: {image: jpg, mask: seg.png}
    lanes: int = 32  # equal parts that a pass is cut into; ranks x workers must divide it; a property of the run
    shuffle_window: int = 16384  # samples; a set that fits is permuted whole, a larger one within shards and windows
    workers: int = 2  # loader processes per rank; 0 loads in the training process
    max_damaged: float = 0.01  # share of damaged samples above which the run stops
    max_pixels: int = 100_000_000  # of an image; a set with larger ones is refused
    cache: str | None = None  # directory for shards from elsewhere; null: $CSSR_CACHE or ~/.cache/cssr
    cache_gib: float = 50.0  # what it may hold, GiB; the least recently used shard goes first
    retries: int = 5  # further tries at a remote file before the run stops
    timeout: float = 30.0  # seconds without progress after which a try is given up


@dataclass
class LossConfig:
    sr: dict[str, Any] = _component("l1")  # loss of the SR image: cssr/losses
    seg: dict[str, Any] = _component("boundary_combo")  # loss of the segmentation: cssr/losses
    beta: Any = 0.3  # total = (1 - beta) SR + beta segmentation + extra; a number or a schedule
    extra: list[Any] = field(
        default_factory=list
    )  # further losses: [{loss: NAME or component, weight: number or schedule}]
    sr_times_seg: int | None = None  # samples after which a sample's SR loss is multiplied by its segmentation loss


@dataclass
class PhaseConfig:
    name: str = "joint"  # printed and logged
    until: int | None = None  # samples seen at which the phase ends; null: the end of the run
    beta: Any = None  # replaces loss.beta in this phase; null: loss.beta
    sr: Any = None  # replaces loss.sr in this phase; null: loss.sr
    true_kernel: bool = False  # whether the SR network is given the true blur kernel; what it predicts has no effect
    lr: dict[str, float] = field(
        default_factory=dict
    )  # factor per parameter group (sr, kernel, seg, encoder, blur_skip), encoder's is seg's if unset; 0 holds it still
    alternate: list[list[str]] = field(
        default_factory=list
    )  # parameter groups trained in turn, a list for each step: [[sr, kernel], [seg]]; groups in none always train
    mix: Any = None  # patches of HR in what segmentation sees: {share: number or schedule, size: HR pixels}; null: none
    hold_batch_norm: bool = True  # whether BatchNorm in groups that are held still keeps its statistics


@dataclass
class OptimConfig:
    optimizer: str = "adam"  # any optimizer of timm.optim
    lr: float = 2e-5  # base learning rate
    weight_decay: float = 0.0  # as the optimizer means it
    arguments: dict[str, Any] = field(
        default_factory=dict
    )  # further arguments of the optimizer, e.g. {betas: [0.9, 0.99]}
    schedule: dict[str, Any] = _component("constant")  # factor on lr: cssr/config/schedules.py
    warmup: int = 0  # samples over which lr rises linearly
    warmup_start: float = 0.0  # factor on lr at the start of the warm-up
    clip_norm: float | None = None  # largest gradient norm; null: no clipping
    ema: float | None = None  # decay of the exponential moving average of the weights; null: none
    batch_norm: BatchNorm = "rank"  # statistics of a rank's samples, of all ranks' (GPUs), fixed, fixed in the encoder
    layer_decay: float | None = None  # factor on lr from each layer of the encoder to the one before; null: 1
    ema_warmup: bool = True  # the average's decay rises from 0 (short runs need it)


@dataclass
class TrainConfig:
    run_dir: str = "runs/default"  # everything the run writes; the same command again resumes it
    steps: int = 100_000  # optimizer steps
    batch_size: int = 6  # samples a step over all processes
    micro_batch: int | None = None  # samples a forward pass per process; null: batch_size / processes (no accumulation)
    recompute: bool = False  # blocks compute their activations again in the backward pass: less memory, a third slower
    compile: bool = False  # torch.compile of the network in training steps: minutes at the start; needs a compiler
    channels_last: bool = True  # weights and images are kept with a pixel's channels side by side; it is faster
    seed: int = 0  # of the weights, the order, the crops, the degradations
    init_from: str | None = None  # run, export or .safetensors file to start from (fine-tuning)
    log_every: int = 10  # steps
    val_every: int = 1000  # steps; 0: never
    save_every: int = 1000  # steps between checkpoints
    keep: int = 2  # newest checkpoints kept, the best one apart
    best: str = "iou_max"  # measure (per-image mean) by which the best checkpoint is kept
    max_skipped: int = 20  # steps left out for a loss that is not finite; more of them end the run
    hang_timeout: float = 1800  # seconds without progress after which a rank writes down its stacks and ends
    sample_count: int = 4  # validation images in the sample strips
    export_ema: bool = True  # whether the export holds the averaged weights, where there are any
    export_best: bool = True  # whether the export is the best checkpoint (else the last)
    calibrate: bool = True  # whether the export has the temperature that fits its own validation best
    tensorboard: bool = True  # write TensorBoard files where it is installed
    wandb: str | None = None  # Weights & Biases project
    trackers: list[str] = field(default_factory=list)  # more that accelerate knows: mlflow, aim, comet_ml, clearml, ...
    dry_run: bool = False  # run one batch, print sizes, write nothing


@dataclass
class EvalConfig:
    batch_size: int = 4  # images of equal size evaluated together
    limit: int | None = None  # validate on this many images only; null: all
    tile: int = 0  # LQ pixels a side; larger images are evaluated in overlapping tiles; 0: never
    seed: int = 0  # of the degradation of the validation images


@dataclass
class Config:
    imports: list[str] = field(default_factory=list)  # modules that register networks, losses, degradations of your own
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    degradation: dict[str, Any] = _component("downsample")  # HR to LQ: cssr/degradations
    loss: LossConfig = field(default_factory=LossConfig)
    phases: list[PhaseConfig] = field(default_factory=lambda: [PhaseConfig()])  # in order; the last has until: null
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)


def check(config: Config) -> None:
    """Check all that needs neither data nor devices; ValueError names the setting."""
    _check_finite(dataclasses.asdict(config))
    _check_bounds({key: _at(config, key) for key in _BOUNDS})
    for key in ("optim.clip_norm", "optim.layer_decay"):
        if _at(config, key) == 0:
            raise ValueError(f"{key} must be above 0, got 0; null: none")
    if config.optim.ema == 1:
        raise ValueError("optim.ema must be below 1, got 1: the average would stay as the weights began")
    if not config.train.run_dir.strip():
        raise ValueError("train.run_dir is empty: name the directory of the run")
    check_model(config.model)
    _check_suffixes(config.data.suffixes)
    _check_sizes(config)
    _check_phases(config.phases)


def _check_finite(value: Any, key: str = "") -> None:
    """Refuse NaN and infinity wherever they are."""
    if isinstance(value, (dict, list)):
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        for name, part in parts:
            _check_finite(part, f"{key}[{name}]" if isinstance(name, int) else f"{key}.{name}".lstrip("."))
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{key} must be a finite number, got {value}")


def _check_bounds(values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        low, high = _BOUNDS.get(key, (None, None))
        if low is not None and value is not None and not low <= value <= high:
            limit = str(high) if isinstance(high, int) and high < 10**7 else f"{high:g}"
            raise ValueError(f"{key} must be {low} to {limit}, got {value}")


# what can be meant: smallest and largest value; null is fine where it is allowed
_SOME, _MANY, _SAMPLES, _SEEDS, _SHARE = 65_536, 10**9, 10**15, 2**32 - 1, (0, 1)
_BOUNDS: dict[str, tuple[float, float]] = {
    "model.scale": (1, 32),
    "model.temperature": (1e-6, 10**6),
    "data.crop": (1, 16_384),
    "data.lanes": (1, _SOME),
    "data.shuffle_window": (1, _MANY),
    "data.workers": (0, 1024),
    "data.max_pixels": (1, 10**11),
    "data.cache_gib": (0.001, 10**7),
    "data.retries": (0, 1000),
    "data.timeout": (0.1, 10**6),
    "loss.sr_times_seg": (0, _SAMPLES),
    "optim.lr": (0, 10**6),
    "optim.weight_decay": (0, 1000),
    "optim.warmup": (0, _SAMPLES),
    "optim.warmup_start": (0, 1000),
    "optim.clip_norm": (0, 10**9),
    "train.steps": (1, _MANY),
    "train.batch_size": (1, _SOME),
    "train.micro_batch": (1, _SOME),
    "train.seed": (0, _SEEDS),
    "train.log_every": (1, _MANY),
    "train.val_every": (0, _MANY),
    "train.save_every": (1, _MANY),
    "train.keep": (1, 10**6),
    "train.max_skipped": (0, _MANY),
    "train.hang_timeout": (1, 10**7),
    "train.sample_count": (0, 1000),
    "eval.batch_size": (1, _SOME),
    "eval.limit": (1, _MANY),
    "eval.seed": (0, _SEEDS),
    **dict.fromkeys(("data.hflip", "data.vflip", "data.crack_share", "data.max_damaged"), _SHARE),
    **dict.fromkeys(("optim.ema", "optim.layer_decay"), _SHARE),
}


def _at(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = getattr(config, part)
    return config


def check_model(model: ModelConfig) -> None:
    """Check a model's settings, the only ones of an export; ValueError names the one that is wrong."""
    _check_finite(dataclasses.asdict(model), "model")
    _check_bounds({f"model.{name}": value for name, value in vars(model).items()})
    if (model.scale == 1) != (model.sr.get("name") == "none"):
        raise ValueError(
            f"model.sr={model.sr.get('name')} with model.scale={model.scale}: scale 1 goes with sr=none "
            "(the HR upper bound) and with nothing else"
        )
    for key, values in (("model.mean", model.mean), ("model.std", model.std)):
        if len(values) != 3 or (key == "model.std" and min(values) <= 0):
            raise ValueError(f"{key} needs three numbers (red, green, blue), std above 0; got {values}")


def _check_suffixes(suffixes: Mapping[str, Any]) -> None:
    lists = [[given] if isinstance(given, str) else given for given in suffixes.values()]
    words = all(isinstance(given, list) and given and all(isinstance(word, str) for word in given) for given in lists)
    if suffixes and not (words and "image" in suffixes and {*suffixes} <= {"image", "mask"}):
        raise ValueError(
            f"data.suffixes must be as {{image: [jpg, png], mask: seg.png}}, or without mask for images alone; "
            f"got {suffixes}"
        )


def _check_sizes(config: Config) -> None:
    data, scale = config.data, config.model.scale
    if data.crop % scale:
        near = data.crop // scale * scale or scale
        raise ValueError(f"data.crop={data.crop} is not a multiple of model.scale={scale}; try {near}")
    share = data.resized_crop
    if share is not None and not (len(share) == 2 and 0 < share[0] <= share[1] <= 1):
        raise ValueError(f"data.resized_crop needs [low, high] with 0 < low <= high <= 1, got {share}")
    check_tile(config.eval.tile, "eval.tile")


def check_tile(tile: int, setting: str) -> None:
    """Refuse tiles too small for their overlap; ValueError names the setting."""
    if tile != 0 and tile <= 2 * TILE_OVERLAP:
        raise ValueError(
            f"{setting} must be 0 or exceed {2 * TILE_OVERLAP} LQ pixels (overlap {TILE_OVERLAP}), got {tile}"
        )


def _check_phases(phases: Sequence[PhaseConfig]) -> None:
    ends = [phase.until for phase in phases]
    if not phases or ends[-1] is not None or None in ends[:-1]:
        raise ValueError("phases: every phase but the last needs until: SAMPLES, and the last until: null")
    if sorted(set(ends[:-1])) != ends[:-1] or ends[0] == 0 or (ends[0] or 1) < 1:
        raise ValueError(f"phases: until must rise from phase to phase, in samples, got {ends[:-1]}")
    for phase in phases:
        for group, factor in phase.lr.items():
            if not fits(factor, Annotated[float, Within(0, 10**6)]):
                raise ValueError(f"phases: {phase.name}.lr.{group} must be 0 to 1e+06, got {shortened(factor)}")


def segments(model: ModelConfig) -> bool:
    """Return whether a model of these settings finds cracks; `dsrl` does without `model.seg`."""
    return model.seg.get("name") != "none" or model.form.get("name") == "dsrl"
