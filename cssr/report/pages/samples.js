// Samples: masks at a threshold, the wipe, kernels.
{
  const LEVELS = 99; // thresholds; a pixel's grey says how many of them lie below its probability
  const COLOURS = { hit: [0, 158, 115], false: [230, 85, 0], missed: [86, 180, 233] };
  const SMOOTH = 1e-5; // of the IoU, as in the evaluation

  const picture = async (name) => {
    const image = new Image();
    image.src = data.uris[name];
    await image.decode();
    return image;
  };
  const grey = (image) => {
    const canvas = make("canvas", undefined, { width: image.naturalWidth, height: image.naturalHeight });
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(image, 0, 0);
    const { data: bytes } = context.getImageData(0, 0, canvas.width, canvas.height);
    return Uint8Array.from({ length: bytes.length / 4 }, (_, i) => bytes[4 * i]);
  };
  // How many pixels, of cracks and of the rest, have at least so many thresholds below them.
  const countUp = (levels, mask) => {
    const cracks = new Array(LEVELS + 2).fill(0), rest = new Array(LEVELS + 2).fill(0);
    levels.forEach((level, i) => (mask[i] ? cracks : rest)[level]++);
    for (let level = LEVELS; level >= 0; level--) {
      cracks[level] += cracks[level + 1];
      rest[level] += rest[level + 1];
    }
    return { cracks, rest };
  };
  const share = (part, other, empty) => (part + other ? part / (part + other) : empty ? 1 : 0);
  const scoresAt = ({ cracks, rest }, level) => {
    const tp = cracks[level], fp = rest[level], fn = cracks[0] - tp;
    return { iou: (tp + SMOOTH) / (tp + fp + fn + SMOOTH), precision: share(tp, fp, fn === 0), recall: share(tp, fn, fp === 0) };
  };
  const loaded = new Map();
  const load = (sample) => {
    if (!loaded.has(sample)) loaded.set(sample, loadNow(sample));
    return loaded.get(sample);
  };
  const loadNow = async (sample) => {
    const names = Object.keys(sample.files);
    const images = Object.fromEntries(await Promise.all(names.map(async (name) => [name, await picture(sample.files[name])])));
    if (!images.prob) return { images };
    const levels = grey(images.prob).map((value) => Math.round((value * LEVELS) / 255));
    const mask = grey(images.mask).map((value) => (value > 127 ? 1 : 0));
    return { images, levels, mask, counts: countUp(levels, mask) };
  };

  const colourOf = (paint, found, crack) => {
    if (paint === "errors") return found ? (crack ? COLOURS.hit : COLOURS.false) : crack ? COLOURS.missed : null;
    return (paint === "mask" ? found : crack) ? COLOURS.false : null;
  };
  const paintMask = (canvas, { images, levels, mask }, { width, height }, level, under, paint) => {
    Object.assign(canvas, { width, height });
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.imageSmoothingEnabled = false;
    context.drawImage(images[under], 0, 0, width, height);
    if (!levels) return;
    const frame = context.getImageData(0, 0, width, height), bytes = frame.data;
    const colours = [colourOf(paint, false, false), colourOf(paint, false, true), colourOf(paint, true, false), colourOf(paint, true, true)];
    for (let i = 0; i < levels.length; i++) {
      const colour = colours[(levels[i] >= level ? 2 : 0) + mask[i]];
      if (colour) for (let c = 0; c < 3; c++) bytes[4 * i + c] = 0.3 * bytes[4 * i + c] + 0.7 * colour[c];
    }
    context.putImageData(frame, 0, 0);
  };

  const shown = { result: null, sample: null, painting: 0 };
  const ifCurrent = async (sample, then) => {
    const content = await load(sample);
    if (shown.sample === sample) then(content);
  };
  const showMask = () => {
    const sample = shown.sample, level = Number(byId("threshold").value);
    byId("threshold").setAttribute("aria-valuetext", percent(level));
    byId("threshold-at").textContent = percent(level);
    byId("paint-legend").hidden = byId("paint").value !== "errors";
    return ifCurrent(sample, (content) => {
      const { iou, precision, recall } = scoresAt(content.counts, level);
      const words = `IoU ${iou.toFixed(3)}, precision ${precision.toFixed(3)}, recall ${recall.toFixed(3)}`;
      byId("scores").textContent = `at ${percent(level)}: ${words}`;
      byId("mask").setAttribute("aria-label", `${byId("paint").selectedOptions[0].text} of ${sample.key} at ${percent(level)}: ${words}`);
      cancelAnimationFrame(shown.painting); // a slider moves faster than a large image is painted
      const paint = () => paintMask(byId("mask"), content, sample, level, byId("under").value, byId("paint").value);
      shown.painting = requestAnimationFrame(paint);
    });
  };
  const showWipe = () => {
    for (const side of ["left", "right"]) {
      const image = byId(`wipe-${side}`), chosen = byId(side).value;
      image.src = data.uris[shown.sample.files[chosen]];
      image.alt = `${byId(side).selectedOptions[0].text} of ${shown.sample.key}`;
      image.classList.toggle("coarse", chosen === "lq");
      image.width = shown.sample.width; // the LQ image as large as the others
      image.height = shown.sample.height;
    }
    moveWipe();
  };
  const moveWipe = () => {
    const at = Number(byId("wipe").value);
    byId("wipe-right").style.clipPath = `inset(0 0 0 ${at}%)`;
    byId("wipe-line").style.left = `calc(${at}% - 1px)`;
    byId("wipe-at").textContent = `${at} %`;
    byId("wipe").setAttribute("aria-valuetext", `${byId("left").selectedOptions[0].text} on ${at} % of the width`);
  };
  const paintKernel = (id, kernel, most, words) => {
    const canvas = byId(id);
    canvas.parentElement.hidden = !kernel;
    if (!kernel) return;
    Object.assign(canvas, { width: kernel[0].length, height: kernel.length });
    const frame = new ImageData(canvas.width, canvas.height);
    kernel.flat().forEach((value, i) => {
      const light = Math.round(255 * Math.min(1, Math.max(0, value / most)));
      frame.data.set([light, light, light, 255], 4 * i);
    });
    canvas.getContext("2d").putImageData(frame, 0, 0);
    const text = `${words}, ${canvas.width} x ${canvas.height}, maximum ${Math.max(...kernel.flat()).toFixed(4)}`;
    canvas.setAttribute("aria-label", text);
    byId(`${id}-words`).textContent = text;
  };
  const showKernels = ({ kernel, predicted }) => {
    byId("kernels").hidden = !kernel && !predicted;
    const most = Math.max(...[kernel, predicted].flatMap((values) => (values ? values.flat() : [0])));
    paintKernel("kernel-true", kernel, most, "true kernel");
    paintKernel("kernel-predicted", predicted, most, "estimated kernel");
  };
  const showSample = (sample) => {
    shown.sample = sample;
    const [height, width] = sample.whole;
    const part = sample.height < height || sample.width < width;
    const cut = part ? `; shown is a part of ${sample.width} x ${sample.height} of ${width} x ${height} pixels, which the numbers below are of` : "";
    byId("about").textContent = `${sample.key} (${sample.kinds.join(", ")}), whole image: ${sample.quality}, x${sample.scale}${cut}`;
    byId("masking").hidden = !sample.files.prob;
    showKernels(sample);
    showWipe();
    return sample.files.prob ? showMask() : undefined;
  };
  const card = (sample, index, level) => {
    const label = make("label", undefined, { className: "card" }), canvas = make("canvas");
    const radio = make("input", undefined, { type: "radio", name: "sample", value: String(index), checked: index === 0 });
    canvas.setAttribute("aria-hidden", "true");
    label.append(radio, canvas, make("span", `${sample.kinds.join(", ")}: ${sample.quality}`), make("span", sample.key));
    load(sample).then((content) => paintMask(canvas, content, sample, level, "sr", "errors"));
    return label;
  };
  const showResult = () => {
    const result = data.results[Number(byId("result").value)];
    shown.result = result;
    const level = result.level ?? 50;
    loaded.clear(); // decoded images are large
    byId("threshold").value = level;
    byId("cards").replaceChildren(...result.samples.map((sample, index) => card(sample, index, level)));
    return showSample(result.samples[0]);
  };
  if (byId("images")) {
    byId("result").addEventListener("change", showResult);
    byId("cards").addEventListener("change", (event) => showSample(shown.result.samples[Number(event.target.value)]));
    for (const id of ["threshold", "under", "paint"]) byId(id).addEventListener("input", showMask);
    for (const id of ["left", "right"]) byId(id).addEventListener("input", showWipe);
    byId("wipe").addEventListener("input", moveWipe);
    const box = byId("wipe-box");
    const drag = (event) => {
      const edge = box.getBoundingClientRect();
      byId("wipe").value = Math.round((100 * (event.clientX - edge.left)) / edge.width);
      moveWipe();
    };
    box.addEventListener("pointerdown", (event) => {
      event.preventDefault();
      box.setPointerCapture(event.pointerId);
      drag(event);
    });
    box.addEventListener("pointermove", (event) => box.hasPointerCapture(event.pointerId) && drag(event));
    showResult();
  }
}
