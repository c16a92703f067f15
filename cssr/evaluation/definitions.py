"""Names and definitions of all measures, which every results file carries."""

LINES_THRESHOLD = 0.5  # of the measures of centre lines, boundaries and cracks
TOLERANCE = 4  # HR pixels by which centre lines may differ
BOUNDARY_TOLERANCE = 2  # HR pixels by which boundaries may differ
LINE_KEYS = ("cldice", "cliou", "boundary_f1")
CRACK_KEYS = ("width_error", "max_width_error", "length_error", "width_bias", "length_bias")
KEYS = (
    *("iou_max", "iou_max_threshold", "aiu"),
    *("hd95_min", "ahd95", "msd_min", "amsd"),
    *("psnr", "psnr_infinite", "ssim", "kernel_psnr", "lq_psnr"),
    *("precision", "recall", "f1", "accuracy", "sensitivity", "specificity"),
    *("ods", "ods_threshold", "ois", "ap", "ece"),
    *LINE_KEYS,
    *CRACK_KEYS,
)
SLOW_KEYS = ("hd95_min", "ahd95", "msd_min", "amsd", *LINE_KEYS, *CRACK_KEYS)  # measured where it is asked for
UNRANKED_KEYS = ("iou_max_threshold", "ods_threshold", "psnr_infinite", "width_bias", "length_bias")  # none is best
IMAGE_KEYS = ("psnr", "psnr_infinite", "ssim", "kernel_psnr", "lq_psnr")
SEGMENTATION_KEYS = tuple(key for key in KEYS if key not in IMAGE_KEYS)

_AREA = "IoU = (tp + 1e-5) / (tp + fp + fn + 1e-5), 1 where mask and prediction are both empty"
_AT = "at iou_max_threshold; image: mean over images"
_BEST = "at iou_max_threshold, without smoothing; both empty gives 1, one empty 0; image: mean over images"
_DETECTION = "without smoothing, both empty 1, one empty 0; image: mean over images; pooled: of the summed counts"
_LINES = (
    f"at threshold {LINES_THRESHOLD} (centre lines: Guo and Hall's thinning); both empty gives 1, one empty 0; "
    "mean over the images it was computed for; pooled: not defined"
)
_CRACKS = (
    f"HR pixels, at threshold {LINES_THRESHOLD}; an image without cracks has width and length 0; mean over the "
    "images it was computed for (not those as ragged as noise, or with more than 10,000 cracks); "
    "pooled: not defined"
)
_WIDTH = "mean width of an image's cracks (area / length, weighted by length, as cssr.measure gives it)"
_LENGTH = "length of all cracks of an image (centre lines with branches, as cssr.measure gives it)"
_SURFACE = (
    "pixels, as Google DeepMind's surface-distance library defines it in 2D (contour of pixel corners, "
    "weighted by contour length); 0 where mask and prediction are both empty, max(H, W) where one is; "
    "mean over the images it was computed for, at each threshold; pooled: not defined"
)
_HD95 = f"Hausdorff distance at percentile 95 (CSBSR's evaluator used 50), greater of both directions, {_SURFACE}"
_MSD = f"mean surface distance (the average of both directions), {_SURFACE}"
# Of the reported numbers, for the results file. Reports compare these texts: a change of words looks like another
# measure beside results of before.
DEFINITIONS = {
    "image": "each image is measured by itself, and images count equally, whatever their size",
    "pooled": "counts and squared errors are summed over all images first, so that pixels count equally",
    "thresholds": "0.01, 0.02, ..., 0.99; a pixel is crack where prob > threshold in float32; NaN is background",
    "iou_max": f"{_AREA}; mean over images, or of the summed counts (pooled); at the whole set's best threshold",
    "iou_max_threshold": "the threshold of iou_max, chosen on this very set; the lowest one in a tie",
    "aiu": f"{_AREA}; mean over the 99 thresholds of the curve whose maximum is iou_max",
    "hd95_min": f"minimum over the 99 thresholds of the {_HD95}",
    "ahd95": f"mean over the 99 thresholds of the {_HD95}",
    "msd_min": f"minimum over the 99 thresholds of the {_MSD}",
    "amsd": f"mean over the 99 thresholds of the {_MSD}",
    "accuracy": f"(tp + tn) / pixels {_AT}",
    "sensitivity": "recall under its other name",
    "specificity": f"tn / (tn + fp) {_AT}; where all pixels are crack: 1 if all are predicted to be, else 0",
    "ods": f"greatest F1 that one threshold gives the whole set, {_DETECTION} (the field's)",
    "ods_threshold": "the threshold of ods, chosen on this very set; the lowest one in a tie",
    "ois": f"F1 with each image at its own best threshold, the highest one in a tie, {_DETECTION}; the "
    "field means the former",
    "ap": "area under the precision-recall curve of the 99 thresholds: the sum of (rise of recall) x precision "
    "from 0.99, above which recall is 0, down to 0.01; image: mean over the images that have a crack; pooled (the "
    "field's): of the summed counts; null where there is no crack",
    "ece": "expected calibration error: mean over pixels of |mean probability - share of crack pixels| of their "
    "bin, of 15 equal bins of probability, from a histogram of logits; image: mean over images; pooled: of all "
    "pixels",
    "calibration.temperature": "the temperature (the model's times what fits its logits) with the least mean "
    "negative log-likelihood of this set's pixels; the model's where they are all of one class",
    "calibration.reliability": "all images' pixels in 15 equal bins of probability: their mean probability, the "
    "share of crack among them, and how many; null where there is none",
    "cldice": f"harmonic mean of the share of the predicted centre line that lies in the mask and of the share of "
    f"the mask's centre line that is predicted {_LINES}",
    "cliou": f"IoU of centre lines with a tolerance of {TOLERANCE} px: of the predicted line's pixels, those at "
    "most so far (Euclidean) from the mask's line are hits, the others false; pixels of the mask's line further "
    f"than that from the predicted line are missed; hits / (hits + false + missed) {_LINES}",
    "boundary_f1": f"F1 of boundary pixels (crack pixels with a neighbour by side that is none, beyond the image "
    f"too), those at most {BOUNDARY_TOLERANCE} px (Euclidean) from the other side's boundary being right {_LINES}",
    "width_error": f"absolute error of the {_WIDTH}, {_CRACKS}",
    "max_width_error": f"absolute error of the greatest width of an image's cracks, across their centre lines, "
    f"{_CRACKS}",
    "length_error": f"absolute error of the {_LENGTH}, {_CRACKS}",
    "width_bias": f"predicted minus true {_WIDTH}, {_CRACKS}",
    "length_bias": f"predicted minus true {_LENGTH}, {_CRACKS}",
    "lq_psnr": "dB, PSNR between the HR image blurred by the predicted and by the true blur kernel and reduced by "
    "every scale-th pixel, borders replicated, without noise or compression; peak 1; mean over images, infinite "
    "ones left out; pooled: not defined",
    "psnr": "dB, 10 log10(1 / mse) over RGB and all pixels, SR clipped to [0, 1], peak 1; image: mean over the "
    "images whose PSNR is finite; pooled: of the mean mse, weighted by pixels; null where infinite",
    "psnr_infinite": "how many PSNRs were infinite (SR identical to HR) and so left out of psnr",
    "ssim": "11x11 Gaussian window, sigma 1.5, zero padding, C1 = 0.01^2, C2 = 0.03^2, per channel of RGB, SR "
    "clipped to [0, 1]; mean over channels, pixels and images; pooled: not defined",
    "kernel_psnr": "dB, PSNR of the predicted against the true blur kernel, both clipped to [0, 1], peak 1; mean "
    "over images, infinite ones left out; pooled: not defined",
    "precision": f"tp / (tp + fp) {_BEST}",
    "recall": f"tp / (tp + fn) {_BEST}",
    "f1": f"2 tp / (2 tp + fp + fn) {_BEST} (not the F1 of the mean precision and recall)",
    "intervals": "95 % intervals: percentiles 2.5 and 97.5 of 1000 seeded bootstrap resamples of the images, as "
    "many as the set has; the best threshold is chosen anew in each; they say nothing of another training run",
    "groups.source": "parts of the set by what stands before the first _ or - of a key, if it begins with a "
    "letter, the rest being others; iou: mean at the whole set's metrics.image.iou_max_threshold; image and "
    "pooled: at the part's own best threshold; null of one part, and of more than 30",
    "groups.blur": "parts of the set by the true kernel's width, HR pixels: the root of its mean variance along "
    "both axes (a Gaussian's sigma); otherwise as groups.source; null of one part",
    "groups.crack_width": "parts of the set by the mean width of the mask's cracks in an image, weighted by length, HR "
    "pixels; otherwise as groups.source; null of one part",
    "per_image.blur_sigma": "the kernel's width as in groups.blur",
    "per_image.crack_width": "the width as in groups.crack_width; 0 without cracks, null where they are too ragged",
}
