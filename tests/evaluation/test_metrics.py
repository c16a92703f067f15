"""Every metric against the golden vectors, an independent implementation, or a figure worked out by hand."""

import math
import random

import numpy as np
import pytest
import torch
from paths import SHARED
from scipy.ndimage import distance_transform_edt, gaussian_filter
from scipy.spatial.distance import cdist, directed_hausdorff

from cssr.evaluation import metrics
from cssr.evaluation import surface_distance as distances
from cssr.evaluation.aggregate import _mean, aggregate, iou_curve
from cssr.evaluation.definitions import CRACK_KEYS, DEFINITIONS, IMAGE_KEYS, KEYS, LINE_KEYS, SEGMENTATION_KEYS
from cssr.evaluation.surface_distance import surface_distances

GOLDEN = SHARED / "golden" / "losses_degradation_metrics.npz"
T = np.array([i * 0.01 for i in range(1, 100)], dtype=np.float32)


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    if not GOLDEN.exists():
        pytest.skip(f"no golden vectors at {GOLDEN}")
    with np.load(GOLDEN) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def soft_case(seed: int, batch: int = 3, height: int = 24, width: int = 30) -> tuple[torch.Tensor, torch.Tensor]:
    """A random mask of blobs and a smooth probability that resembles it, both (B, 1, H, W)."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(2, batch, 1, height, width, generator=generator)
    first, second = (torch.nn.functional.avg_pool2d(n, 5, 1, 2, count_include_pad=False) for n in noise)
    mask = (first > 0.55).float()
    return (first + 0.7 * (second - 0.5) + 0.2 * (mask - 0.5)).clamp(0, 1), mask


def box(top: int, left: int, side: int = 8, size: int = 40) -> torch.Tensor:
    image = torch.zeros(1, 1, size, size)
    image[..., top : top + side, left : left + side] = 1
    return image


# ---- golden vectors ----


def test_iou_equals_golden(golden):
    counts = metrics.threshold_counts(golden["prob"], golden["target"])
    found = metrics.iou(counts.tp, counts.fp, counts.fn)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, golden["iou_by_threshold"], rtol=0, atol=1e-12)


def test_psnr_and_ssim_equal_golden(golden):
    sr, hr = golden["sr"].clamp(0, 1), golden["hr"]
    torch.testing.assert_close(metrics.psnr(sr, hr), golden["psnr"].double(), rtol=0, atol=1e-5)
    torch.testing.assert_close(metrics.ssim(sr, hr), golden["ssim"].double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["hd95", "hd100", "msd"])
def test_surface_distances_equal_golden(golden, name):
    found = surface_distances(golden["prob"], golden["target"])[name]
    np.testing.assert_allclose(found, golden[f"{name}_by_threshold"].numpy(), rtol=0, atol=1e-4)


# ---- counts ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_counts_equal_a_loop_over_thresholds(dtype):
    prob, mask = soft_case(1)
    prob.flatten()[:198] = torch.from_numpy(np.concatenate([T, np.nextafter(T, np.float32(2))]))  # on and just above
    prob = prob.to(dtype)
    counts = metrics.threshold_counts(prob, mask)
    p, m = prob.float().numpy()[:, 0], mask.numpy()[:, 0] > 0
    for i, t in enumerate(T):
        expected = [(p > t) & m, (p > t) & ~m, ~(p > t) & m, ~(p > t) & ~m]
        for name, pixels in zip(counts._fields, expected):
            assert getattr(counts, name)[:, i].tolist() == pixels.sum((1, 2)).tolist(), (name, i)


def test_counts_sum_to_the_pixels_and_ignore_their_order():
    prob, mask = soft_case(2)
    counts = metrics.threshold_counts(prob, mask)
    assert all(c.shape == (3, 99) and c.dtype == torch.int64 for c in counts)
    assert (sum(counts) == prob[0].numel()).all()
    order = torch.randperm(prob[0].numel(), generator=torch.Generator().manual_seed(0))
    shuffled = [x.flatten(2)[..., order].view_as(x) for x in (prob, mask)]
    assert all(torch.equal(a, b) for a, b in zip(counts, metrics.threshold_counts(*shuffled)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_gives_the_cpu_numbers():
    prob, mask = soft_case(3)
    for a, b in zip(metrics.threshold_counts(prob, mask), metrics.threshold_counts(prob.cuda(), mask.cuda())):
        assert torch.equal(a, b.cpu())
    on_gpu = metrics.ssim(prob.cuda(), mask.cuda()).cpu()
    torch.testing.assert_close(metrics.ssim(prob, mask), on_gpu, rtol=0, atol=1e-6)
    on_gpu = surface_distances(prob.cuda(), mask.cuda())
    assert all(np.array_equal(on_gpu[k], v) for k, v in surface_distances(prob, mask).items())


def test_extreme_probabilities_and_masks_of_any_dtype():
    prob = torch.tensor([0.0, 1.0, math.nan, 1.0]).view(1, 1, 2, 2)
    for mask in (torch.tensor([0, 1, 1, 0]), torch.tensor([False, True, True, False])):
        counts = metrics.threshold_counts(prob, mask.view(1, 1, 2, 2))
        assert all((c == 1).all() for c in counts)  # NaN is background, so a miss


def test_shapes_that_differ_are_refused():
    for function in (metrics.threshold_counts, surface_distances, metrics.psnr, metrics.ssim):
        with pytest.raises(ValueError, match="one shape"):
            function(torch.zeros(2, 1, 4, 4), torch.zeros(2, 4, 4))


@pytest.mark.parametrize("make", [list, np.array, torch.tensor])
def test_scores_and_their_empty_rules(make):
    # ordinary; both empty; an empty mask; an empty prediction; nothing in common
    tp, fp, fn = make([6, 0, 0, 0, 0]), make([2, 0, 5, 0, 3]), make([4, 0, 0, 5, 3])
    np.testing.assert_allclose(metrics.iou(tp, fp, fn), [0.5, 1, 0, 0, 0], atol=3e-6)
    np.testing.assert_allclose(metrics.precision(tp, fp, fn), [0.75, 1, 0, 0, 0])
    np.testing.assert_allclose(metrics.recall(tp, fp, fn), [0.6, 1, 0, 0, 0])
    np.testing.assert_allclose(metrics.f1(tp, fp, fn), [12 / 18, 1, 0, 0, 0])
    tn, fp, fn = make([6, 0, 0, 9]), make([2, 0, 5, 0]), make([4, 0, 0, 3])
    np.testing.assert_allclose(metrics.specificity(tn, fp, fn), [0.75, 1, 0, 1])
    np.testing.assert_allclose(metrics.specificity(make([0]), make([0]), make([5])), [0])
    np.testing.assert_allclose(metrics.accuracy(make([6, 0]), make([2, 9]), make([1, 0]), make([1, 0])), [0.8, 1])


# ---- what a whole set's counts say ----


def counted(prob: torch.Tensor, mask: torch.Tensor) -> list[dict]:
    counts = metrics.threshold_counts(prob, mask)
    names = ("tp", "fp", "fn")
    return [
        {"key": str(i), "pixels": mask[i].numel(), **{name: getattr(counts, name)[i].tolist() for name in names}}
        for i in range(len(prob))
    ]


def plain_f1(pred: np.ndarray, mask: np.ndarray) -> float:
    return 2 * (pred & mask).sum() / (pred.sum() + mask.sum()) if pred.any() or mask.any() else 1.0


@pytest.mark.parametrize("seed", range(3))
def test_ods_and_ois_equal_a_search_in_the_pixels(seed):
    prob, mask = soft_case(seed, batch=5)
    mask[0] = 0
    found = aggregate(counted(prob, mask))
    p, m = prob.numpy(), mask.numpy() > 0
    table = np.array([[plain_f1(a > t, b) for t in T] for a, b in zip(p, m)])
    together = [plain_f1(p > t, m) for t in T]
    image, pooled = found["image"], found["pooled"]
    assert image["ods"] == pytest.approx(table.mean(0).max()) and image["ois"] == pytest.approx(table.max(1).mean())
    assert image["ods_threshold"] == round(0.01 * (table.mean(0).argmax() + 1), 2)
    assert pooled["ods"] == pytest.approx(max(together))
    assert pooled["ods_threshold"] == round(0.01 * (np.argmax(together) + 1), 2)
    own = [max(t for t, score in zip(T, scores) if score == max(scores)) for scores in table]
    assert pooled["ois"] == pytest.approx(plain_f1(np.stack([a > t for a, t in zip(p, own)]), m))
    assert image["ois"] >= image["ods"]


@pytest.mark.parametrize("seed", range(3))
def test_average_precision_equals_torchmetrics(seed):
    reference = pytest.importorskip("torchmetrics.functional.classification").binary_average_precision
    prob, mask = soft_case(seed, batch=4)
    found = aggregate(counted(prob, mask))
    cut = torch.from_numpy(np.nextafter(T, np.float32(2)))  # it calls crack what is at least a threshold

    def area(p: torch.Tensor, m: torch.Tensor) -> float:
        return reference(p.flatten(), m.flatten().long(), thresholds=cut).item()

    assert found["image"]["ap"] == pytest.approx(np.mean([area(*pair) for pair in zip(prob, mask)]), abs=1e-6)
    assert found["pooled"]["ap"] == pytest.approx(area(prob, mask), abs=1e-6)


def test_average_precision_without_a_crack_is_null_and_of_nothing_found_zero():
    prob, mask = soft_case(0)
    assert [m["ap"] for m in aggregate(counted(prob, 0 * mask)).values()] == [None, None]
    assert [m["ap"] for m in aggregate(counted(0 * prob, mask)).values()] == [0, 0]
    assert [m["ap"] for m in aggregate(counted(0.999 * mask, mask)).values()] == [1, 1]


def test_scores_at_the_best_threshold_equal_torchmetrics():
    names = ("binary_accuracy", "binary_recall", "binary_specificity")
    module = pytest.importorskip("torchmetrics.functional.classification")
    prob, mask = soft_case(4, batch=4)
    found = aggregate(counted(prob, mask))
    for aggregation, how in (("image", "samplewise"), ("pooled", "global")):
        threshold = np.float32(found[aggregation]["iou_max_threshold"])
        pred = (prob > float(T[np.abs(T - threshold).argmin()])).long()
        for key, name in zip(("accuracy", "sensitivity", "specificity"), names):
            expected = getattr(module, name)(pred, mask.long(), multidim_average=how).mean().item()
            assert found[aggregation][key] == pytest.approx(expected, abs=1e-6), (aggregation, key)


# ---- images and kernels ----


def test_psnr_equals_torchmetrics():
    reference = pytest.importorskip("torchmetrics.functional.image").peak_signal_noise_ratio
    sr, hr = torch.rand(2, 3, 3, 20, 30, generator=torch.Generator().manual_seed(0))
    for i, value in enumerate(metrics.psnr(sr, hr)):
        expected = reference(sr[i], hr[i], data_range=1.0)
        assert value.item() == pytest.approx(expected.item(), abs=1e-4)
    pred, true = torch.randn(2, 3, 1, 21, 21, generator=torch.Generator().manual_seed(1))  # many to be clipped
    for i, value in enumerate(metrics.kernel_psnr(pred, true)):
        expected = reference(pred[i].clamp(0, 1), true[i].clamp(0, 1), data_range=1.0)
        assert value.item() == pytest.approx(expected.item(), abs=1e-4)


def test_psnr_closed_forms():
    black = torch.zeros(2, 3, 8, 8)
    assert metrics.psnr(black, black).tolist() == [math.inf, math.inf]
    assert metrics.psnr(black, black + 0.1).tolist() == pytest.approx([20, 20], abs=1e-5)
    kernel = torch.full((1, 1, 5, 5), 0.5)
    for pred in (kernel + 1.5, kernel - 0.7):  # 2 is clipped to 1, and -0.2 to 0
        assert metrics.kernel_psnr(pred, kernel).item() == pytest.approx(-10 * math.log10(0.25))


def plain_ssim(x: np.ndarray, y: np.ndarray) -> float:
    """The definition pixel by pixel for one channel, float64."""
    g = np.exp(-((np.arange(11) - 5) ** 2) / 4.5)
    window, total = np.outer(g, g) / g.sum() ** 2, 0.0
    px, py = np.pad(x, 5), np.pad(y, 5)
    for i, j in np.ndindex(x.shape):
        a, b = px[i : i + 11, j : j + 11], py[i : i + 11, j : j + 11]
        ma, mb = (window * a).sum(), (window * b).sum()
        va, vb, cov = (window * a * a).sum() - ma**2, (window * b * b).sum() - mb**2, (window * a * b).sum() - ma * mb
        total += (2 * ma * mb + 1e-4) * (2 * cov + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4))
    return total / x.size


def test_ssim_equals_its_definition():
    generator = torch.Generator().manual_seed(0)
    hr = torch.rand(2, 3, 13, 17, generator=generator)
    sr = (hr + 0.2 * torch.randn(hr.shape, generator=generator)).clamp(0, 1)
    expected = [np.mean([plain_ssim(*c) for c in zip(a, b)]) for a, b in zip(sr.double().numpy(), hr.double().numpy())]
    np.testing.assert_allclose(metrics.ssim(sr, hr), expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(metrics.ssim(hr, hr), [1, 1], rtol=0, atol=1e-6)


# ---- surface distances ----


def plain_contour(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Corners (N, 2) and their contour lengths, one 2x2 neighbourhood at a time."""
    padded, points, lengths = np.pad(mask, 1), [], []
    for i, j in np.ndindex(mask.shape[0] + 1, mask.shape[1] + 1):
        block = padded[i : i + 2, j : j + 2]
        if 0 < block.sum() < 4:
            diagonal = block[0, 0] == block[1, 1] and block[0, 1] == block[1, 0]
            points.append((i, j))
            lengths.append(math.sqrt(0.5) if block.sum() != 2 else math.sqrt(2) if diagonal else 1.0)
    return np.array(points), np.array(lengths)


def plain_distances(pred: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """Both directed distances by all pairs; a percentile is the first distance that covers its share of length."""
    (p, p_length), (m, m_length) = plain_contour(pred), plain_contour(mask)
    pairs, result = cdist(p, m), {"hd95": 0.0, "hd100": 0.0, "msd": 0.0}
    for distance, length in ((pairs.min(1), p_length), (pairs.min(0), m_length)):
        reached = [d for d in distance if length[distance <= d].sum() / length.sum() >= 0.95]
        result["hd95"] = max(result["hd95"], min(reached))
        result["hd100"] = max(result["hd100"], distance.max())
        result["msd"] += (distance * length).sum() / length.sum() / 2
    return result


# how distances to predictions are found: around each corner, and beyond that by a tree; by a tree; by a map of them
WAYS = {"near": {"_DENSE": 0}, "tree": {"_DENSE": 0, "_OFFSETS": []}, "map": {"_DENSE": 10**9}}


@pytest.fixture(params=WAYS)
def way(request, monkeypatch) -> str:
    for name, value in WAYS[request.param].items():
        monkeypatch.setattr(distances, name, value)
    return request.param


@pytest.mark.parametrize("seed", range(4))
def test_surface_distances_equal_all_pairs(seed, way):
    prob, mask = soft_case(seed, batch=1)
    found, m = surface_distances(prob, mask), mask.numpy()[0, 0].astype(int)
    assert all(v.shape == (1, 99) and v.dtype == np.float64 for v in found.values())
    for i in range(20, 75, 6):
        pred = (prob.numpy()[0, 0] > T[i]).astype(int)
        assert pred.any()
        expected = plain_distances(pred, m)
        assert {k: v[0, i] for k, v in found.items()} == pytest.approx(expected, abs=1e-9), i
        a, b = plain_contour(pred)[0], plain_contour(m)[0]
        assert found["hd100"][0, i] == pytest.approx(max(directed_hausdorff(a, b)[0], directed_hausdorff(b, a)[0]))


def test_surface_distances_of_speckle_touch_every_code():
    rng = np.random.default_rng(0)
    for _ in range(10):
        pred, mask = rng.random((2, 9, 13)) < 0.3
        found = surface_distances(*(torch.from_numpy(x[None, None].astype(np.float32)) for x in (pred, mask)))
        assert {k: v[0, 49] for k, v in found.items()} == pytest.approx(
            plain_distances(pred.astype(int), mask.astype(int)), abs=1e-9
        )


def test_each_threshold_is_measured_as_if_alone():
    prob, mask = soft_case(5)
    prob = (prob * 12).round() / 12  # few levels: most thresholds repeat the previous prediction
    together = surface_distances(prob, mask)
    for i in range(0, 99, 7):
        alone = surface_distances((prob > float(T[i])).float(), mask)
        for name, values in alone.items():
            np.testing.assert_array_equal(values[:, 50], together[name][:, i])


@pytest.mark.parametrize("shift", [0, 1, 5, 13])
def test_squares_shifted_by_k(shift):
    found = surface_distances(box(10, 10), box(10, 10 + shift), percentiles=(100,))
    assert list(found) == ["hd100", "msd"]
    np.testing.assert_allclose(found["hd100"], shift)
    if shift == 0:
        np.testing.assert_allclose(found["msd"], 0)


def test_distances_at_the_rim_count_what_lies_beyond_as_background():
    everything, corner = torch.ones(1, 1, 12, 20), torch.zeros(1, 1, 12, 20)
    corner[..., 0, 0] = 1
    found = surface_distances(corner, everything)
    np.testing.assert_allclose(found["hd100"], math.hypot(11, 19))  # last corner (12, 20) to the pixel's (1, 1)


def test_empty_masks_in_distances():
    some, none = torch.nn.functional.pad(box(3, 3), (0, 20)), torch.zeros(1, 1, 40, 60)
    for prob, mask, expected in ((none, none, 0), (some, none, 60), (none, some, 60)):
        assert all((v == expected).all() for v in surface_distances(prob, mask).values())
    half = surface_distances(0.5 * some, some)["hd95"][0]  # right up to 0.49, then nothing is predicted
    assert (half[:49] == 0).all() and (half[49:] == 60).all()
    half = surface_distances(0.5 * some, none)["msd"][0]
    assert (half[:49] == 60).all() and (half[49:] == 0).all()


def on_contour(pixels: np.ndarray) -> np.ndarray:
    """(H+1, W+1) bool."""
    padded = np.pad(pixels, 1)
    around = padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    return np.logical_or.reduce(around) & ~np.logical_and.reduce(around)


def test_all_ways_give_the_same_distances_at_full_size(way):
    mask = np.zeros((448, 448), np.float32)
    for i, j in np.random.default_rng(0).integers(0, 440, (60, 2)):
        mask[i : i + 7, j : j + 3] = 1
    prob = gaussian_filter(mask, 4) * 2
    pair = [torch.from_numpy(x)[None, None] for x in (prob.clip(0, 1), mask)]
    found = surface_distances(*pair)
    assert found["hd95"].max() > 20  # far ones too
    truth = on_contour(mask > 0)
    for i in range(0, 60, 7):
        predicted = on_contour((pair[0][0, 0] > T[i]).numpy())
        assert predicted.any()
        there, back = distance_transform_edt(~truth)[predicted], distance_transform_edt(~predicted)[truth]
        assert found["hd100"][0, i] == pytest.approx(max(there.max(), back.max()), abs=1e-12)


def test_distance_transform_is_exact_at_full_size():
    off = (np.random.default_rng(0).random((449, 449)) > 2e-5).astype(np.uint8)
    off[0, 0] = 0
    found = distances._squares(off).reshape(off.shape)
    np.testing.assert_array_equal(found, np.rint(distance_transform_edt(off) ** 2))


def test_noise_is_measured_without_sorting_its_corners(monkeypatch):
    """Equal distances are counted together: sorting 99 times as many as the image has corners took 23 s a megapixel."""
    sizes, argsort = [], np.argsort
    monkeypatch.setattr(distances.np, "argsort", lambda x: sizes.append(len(x)) or argsort(x))
    prob, mask = torch.rand(2, 1, 1, 128, 128, generator=torch.Generator().manual_seed(0))
    surface_distances(prob, (mask > 0.5).float())
    assert len(sizes) == 2 * 99
    assert max(sizes) < 1000  # of 16,000 corners


# ---- aggregation ----


def row(key: str, first: tuple[int, int, int], rest: tuple[int, int, int], **values) -> dict:
    """An image of 100 pixels with the counts `first` at threshold 0.01 and `rest` at all others."""
    counts = {name: [a] + [b] * 98 for name, a, b in zip(("tp", "fp", "fn"), first, rest)}
    return (
        {
            "key": key,
            "pixels": 100,
            "psnr": None,
            "mse": None,
            "ssim": None,
            "kernel_psnr": None,
            "hd95": None,
            "msd": None,
        }
        | counts
        | values
    )


def two_rows() -> list[dict]:
    a = row(
        "a",
        (10, 10, 0),
        (8, 0, 2),
        psnr=20.0,
        mse=0.01,
        ssim=0.5,
        kernel_psnr=40.0,
        hd95=[4.0] + [2.0] * 98,
        msd=[1.0] * 99,
    )
    b = row(
        "b", (0, 5, 0), (0, 0, 0), psnr=10.0, mse=0.1, ssim=0.7, pixels=300, hd95=[8.0] + [0.0] * 98, msd=[2.0] * 99
    )
    return [a, b]


def test_aggregate_by_hand():
    result = aggregate(two_rows())
    image, pooled = result["image"], result["pooled"]
    assert set(image) == set(pooled) == set(KEYS)
    # image IoU: 0.01: (0.5 + 0)/2; then (0.8 + 1)/2, b being empty on both sides
    expected = {
        "iou_max": 0.9,
        "iou_max_threshold": 0.02,
        "aiu": (0.25 + 98 * 0.9) / 99,
        "hd95_min": 1.0,
        "ahd95": (6 + 98) / 99,
        "msd_min": 1.5,
        "amsd": 1.5,
        "psnr": 15.0,
        "psnr_infinite": 0,
        "ssim": 0.6,
        "kernel_psnr": 40.0,
        "precision": 1.0,
        "recall": 0.9,
        "f1": (16 / 18 + 1) / 2,
        "accuracy": (0.98 + 1) / 2,
        "sensitivity": 0.9,
        "specificity": 1.0,
        "ods": (16 / 18 + 1) / 2,
        "ods_threshold": 0.02,
        "ois": (16 / 18 + 1) / 2,
        "ap": 0.8 * 1 + 0.2 * 0.5,  # of a alone, as b has no crack
        **dict.fromkeys(("lq_psnr", *LINE_KEYS, *CRACK_KEYS)),
    }
    expected["ece"] = None  # no histograms
    assert image == pytest.approx(expected, abs=1e-5)
    # pooled counts: 0.01: 10, 15, 0; then 8, 0, 2
    assert pooled["iou_max"] == pytest.approx(0.8, abs=1e-5) and pooled["iou_max_threshold"] == 0.02
    assert pooled["aiu"] == pytest.approx((0.4 + 98 * 0.8) / 99, abs=1e-5)
    assert pooled["psnr"] == pytest.approx(-10 * math.log10((100 * 0.01 + 300 * 0.1) / 400))
    assert [pooled[k] for k in ("precision", "recall", "f1")] == pytest.approx([1.0, 0.8, 16 / 18])
    assert [pooled[k] for k in ("accuracy", "specificity")] == pytest.approx([398 / 400, 1.0])
    assert [pooled[k] for k in ("ods", "ois", "ap")] == pytest.approx([16 / 18, 16 / 18, 0.8 + 0.2 * 0.4])
    assert all(pooled[k] is None for k in ("ssim", "kernel_psnr", "hd95_min", "ahd95", "msd_min", "amsd"))


def test_a_number_that_is_none_is_left_out_of_a_mean():
    found = _mean([30.0, math.nan, None, math.inf, 31.0])
    assert found == 30.5 and _mean([math.nan]) is None


def test_infinite_psnr_is_left_out_and_counted():
    rows = two_rows()
    for infinite in (math.inf, None):  # None as read back from a results file; the mse of 0 tells
        result = aggregate([*rows, row("c", (0, 0, 0), (0, 0, 0), psnr=infinite, mse=0.0)])
        assert result["image"]["psnr"] == pytest.approx(15) and result["image"]["psnr_infinite"] == 1
        assert result["pooled"]["psnr"] == pytest.approx(-10 * math.log10(31 / 500))
    only = aggregate([row("c", (1, 0, 0), (1, 0, 0), psnr=math.inf, mse=0.0)])
    assert [only[k]["psnr"] for k in only] == [None, None] and [only[k]["psnr_infinite"] for k in only] == [1, 1]


def test_what_was_not_computed_is_none():
    result = aggregate([row("a", (1, 0, 0), (1, 0, 0))])
    for values in result.values():
        assert {k for k, v in values.items() if v is None} == {
            "psnr",
            "ece",
            "psnr_infinite",
            "ssim",
            "kernel_psnr",
            "hd95_min",
            "ahd95",
            "msd_min",
            "amsd",
            "lq_psnr",
            *LINE_KEYS,
            *CRACK_KEYS,
        }


def test_the_order_of_images_changes_no_bit():
    rng, rows = random.Random(0), []
    for i in range(40):
        counts = [[rng.randrange(90) for _ in range(99)] for _ in range(3)]
        rows.append(
            {"key": str(i), "pixels": 300}
            | dict(zip(("tp", "fp", "fn"), counts))
            | {
                "psnr": rng.uniform(10, 40),
                "mse": rng.random(),
                "ssim": rng.random(),
                "kernel_psnr": None,
                "hd95": [rng.random() for _ in range(99)],
                "msd": [rng.random() for _ in range(99)],
            }
        )
    expected, curve = aggregate(rows), iou_curve(rows)
    rng.shuffle(rows)
    assert aggregate(rows) == expected and iou_curve(rows) == curve
    assert max(curve["image_iou"]) == expected["image"]["iou_max"]
    assert np.mean(curve["pooled_iou"]) == pytest.approx(expected["pooled"]["aiu"])
    assert curve["thresholds"] == [round(0.01 * i, 2) for i in range(1, 100)]


def test_rows_that_cannot_be_aggregated_are_refused():
    with pytest.raises(ValueError, match="no image"):
        aggregate([])
    with pytest.raises(ValueError, match="99 counts"):
        iou_curve([{"tp": [1, 2], "fp": [1, 2], "fn": [1, 2]}])


def test_every_number_has_a_definition():
    others = {"image", "pooled", "thresholds", "intervals", "groups.source", "groups.blur", "groups.crack_width"}
    others |= {"per_image.blur_sigma", "per_image.crack_width", "calibration.temperature", "calibration.reliability"}
    assert set(DEFINITIONS) == set(KEYS) | others
    assert set(SEGMENTATION_KEYS) | set(IMAGE_KEYS) == set(KEYS)


def test_both_ends_of_the_pipeline_agree():
    prob, mask = soft_case(7)
    counts, found = metrics.threshold_counts(prob, mask), surface_distances(prob, mask)
    rows = [
        {
            "key": str(i),
            "pixels": mask[i].numel(),
            "hd95": found["hd95"][i].tolist(),
            **{name: getattr(counts, name)[i].tolist() for name in ("tp", "fp", "fn")},
        }
        for i in range(len(prob))
    ]
    image = aggregate(rows)["image"]
    curve = metrics.iou(counts.tp, counts.fp, counts.fn).mean(0)
    assert image["iou_max"] == pytest.approx(curve.max().item()) and image["aiu"] == pytest.approx(curve.mean().item())
    assert image["hd95_min"] == pytest.approx(found["hd95"].mean(0).min()) and image["psnr"] is None


# ---- the nearest threshold ----


def test_thresholds_below_are_those_of_a_search_around_every_threshold():
    t = metrics.THRESHOLDS
    steps = [torch.nextafter(t, torch.full_like(t, end)) for end in (-9, 9)]
    odd = torch.tensor([0, 1, -1, 2, torch.inf, -torch.inf, 1e30, 1e-40])
    prob = torch.cat([t, *steps, odd, torch.rand(10_000, generator=torch.Generator().manual_seed(0))])
    expected = torch.from_numpy(np.searchsorted(t.numpy(), prob.numpy())).int()
    assert torch.equal(metrics.thresholds_below(prob), expected)
    assert metrics.thresholds_below(torch.tensor([torch.nan])).item() == 0


def test_counts_of_an_image_in_any_layout_and_mask_of_any_type():
    prob = torch.rand(2, 1, 6, 5, generator=torch.Generator().manual_seed(0))
    mask = prob > 0.3
    expected = metrics.threshold_counts(prob, mask)
    turned = prob.permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2)
    assert not turned.is_contiguous()
    for kind in (mask.float(), mask.to(torch.uint8), mask.double()):
        assert all(map(torch.equal, metrics.threshold_counts(turned, kind), expected))
