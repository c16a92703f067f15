// The page: a photograph goes to the server, what comes back is shown, measured at a threshold, and offered as files.

import { Part } from "./demo_part.js";
import { View } from "./demo_view.js";
import { zip } from "./demo_zip.js";

const PAUSE = 250; // ms for which the threshold must rest before it is measured
const ROWS = 100; // cracks in the table; the files have all
const $ = (id) => document.getElementById(id);
const view = new View($("view"));
const part = new Part($("part"), $("part-text"), $("part-canvas"), $("part-send"));
let facts, work, result, measuring, pause;

// --- what the server says -----------------------------------------------------------------------------------------

async function ask(path, options) { // a fetch whose failure is a sentence
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server cannot be reached: is it still running?");
  }
  if (answer.ok) return answer;
  const said = await answer.json().catch(() => ({}));
  throw new Error(said.error || `The server answered with status ${answer.status}.`);
}

function complain(error) {
  $("error").textContent = error ? error.message : "";
  $("error").hidden = !error;
}

async function begin() {
  try {
    facts = await (await ask("/facts")).json();
  } catch (error) {
    return complain(error);
  }
  const million = (number) => `${+(number / 1e6).toPrecision(3)} million`;
  $("about").textContent = `${facts.name}: super-resolves a photograph by ${facts.scale}`
    + (facts.segments ? ", and finds and measures the cracks in it." : "; it finds no cracks.");
  $("bounds").textContent = `JPEG, PNG, TIFF, WebP or BMP of up to ${+(facts.bytes / 1e6).toPrecision(3)} MB; `
    + `of more than ${million(facts.pixels)} pixels, choose a part.`;
  for (const element of document.querySelectorAll(".of-cracks")) element.hidden = !facts.segments;
}

// --- from a file to results ---------------------------------------------------------------------------------------

async function choose(file) {
  cancel();
  complain(null);
  part.close();
  $("results").hidden = true;
  const stem = (file.name || "photograph").replace(/\.[^.]*$/, "") || "photograph";
  if (!facts) await begin();
  if (!facts) return;
  const picture = await createImageBitmap(file).catch(() => null); // null: for the server to say what is wrong
  if (picture && picture.width * picture.height > facts.pixels) {
    part.offer(picture, facts.pixels, (blob, x, y) => predict(blob, `${stem}_x${x}_y${y}`));
    return;
  }
  picture?.close();
  if (file.size > facts.bytes) complain(new Error(`The file is too large: at most ${facts.bytes / 1e6} MB are taken.`));
  else await predict(file, stem);
}

function cancel() {
  work?.abort();
  measuring?.abort();
  clearTimeout(pause);
}

async function predict(body, stem) {
  const own = work = new AbortController(), began = Date.now();
  const clock = setInterval(() => {
    const { max, value, position } = $("progress"), tiles = position < 0 ? "" : `, ${value} of ${max} tiles`;
    $("elapsed").textContent = `${Math.round((Date.now() - began) / 1000)} s${tiles}`;
  }, 250);
  tell("Sending the photograph");
  $("elapsed").textContent = "0 s";
  $("work").hidden = false;
  $("work").scrollIntoView({ block: "nearest" });
  try {
    const options = { method: "POST", body, signal: own.signal, headers: { "Content-Type": "application/octet-stream" } };
    await show(await receive(await ask("/predict", options)), stem);
  } catch (error) {
    if (error.name !== "AbortError" && work === own) complain(error);
  } finally {
    clearInterval(clock);
    if (work === own) $("work").hidden = true;
  }
}

function tell(text, done, of) {
  if ($("state").textContent !== text) $("state").textContent = text;
  if (of) Object.assign($("progress"), { max: of, value: done });
  else $("progress").removeAttribute("value"); // it only moves
}

function progress({ began, done, of }) {
  if (!began) tell("Waiting for other photographs");
  else tell("Working", done, of);
}

// Lines of JSON, then behind the last of them the bytes of the parts that it lists.
async function receive(answer) {
  const reader = answer.body.getReader();
  let rest = new Uint8Array(), last = null;
  const parts = [];
  for (;;) {
    const { value, done } = await reader.read().catch((error) => {
      throw error.name === "AbortError" ? error : new Error("The connection to the server broke off.");
    });
    if (done) break;
    if (last) { parts.push(value); continue; }
    rest = new Uint8Array(await new Blob([rest, value]).arrayBuffer());
    for (let end; !last && (end = rest.indexOf(10)) >= 0; rest = rest.slice(end + 1)) {
      const line = JSON.parse(new TextDecoder().decode(rest.slice(0, end)));
      if (line.event === "error") throw new Error(line.error);
      if (line.event === "result") last = line; else progress(line);
    }
    if (last) { parts.push(rest); tell("Receiving the pictures"); }
  }
  return unpack(last, new Blob(parts));
}

function unpack(last, blob) {
  const length = last?.parts.reduce((sum, { bytes }) => sum + bytes, 0);
  if (blob.size !== length) throw new Error("The answer of the server is not whole.");
  const found = { notes: last.notes };
  let at = 0;
  for (const { name, type, bytes } of last.parts) found[name] = blob.slice(at, at += bytes, type);
  return found;
}

const exact = { colorSpaceConversion: "none", premultiplyAlpha: "none" };

async function show(found, stem) {
  const pictures = {};
  for (const name of ["lq", "sr", "prob"]) if (found[name]) pictures[name] = await createImageBitmap(found[name], exact);
  const { width, height } = pictures.sr;
  result = { ...found, stem, width, height };
  if (pictures.prob) result.values = values(pictures.prob);
  $("results").hidden = false;
  $("notes").textContent = [`${pictures.lq.width} x ${pictures.lq.height} pixels, super-resolved to ${width} x ${height}.`,
    ...found.notes].join(" ");
  $("view").setAttribute("aria-label", `${stem}: the photograph, and its super-resolved image with cracks in colour`);
  view.set(width, height, pictures);
  taking(false);
  $("kernel").hidden = !found.kernel;
  URL.revokeObjectURL($("kernel-picture").src);
  if (found.kernel) $("kernel-picture").src = URL.createObjectURL(found.kernel);
  offer();
  if (result.values) rethreshold(0);
  $("work").hidden = true;
  $("picture").scrollIntoView({ block: "start" });
}

function values(picture) { // its red channel, row by row
  const canvas = new OffscreenCanvas(picture.width, picture.height), context = canvas.getContext("2d");
  context.drawImage(picture, 0, 0);
  const pixels = context.getImageData(0, 0, picture.width, picture.height).data;
  const red = new Uint8Array(pixels.length / 4);
  for (let i = 0; i < red.length; i++) red[i] = pixels[4 * i];
  return red;
}

// --- threshold and measurement ------------------------------------------------------------------------------------

function rethreshold(wait = PAUSE) {
  $("threshold-shown").textContent = Number($("threshold").value).toFixed(2);
  if (!result?.values) return;
  view.boxes = [];
  view.paintMask(result.values, Number($("threshold").value));
  remeasure(wait);
}

function remeasure(wait = PAUSE) {
  if (!result?.values) return;
  measuring?.abort();
  clearTimeout(pause);
  $("table").setAttribute("aria-busy", "true");
  $("summary").textContent = "Measuring …";
  result.measured = null;
  offer();
  pause = setTimeout(measure, wait);
}

async function measure() {
  const own = measuring = new AbortController(), of = result;
  const query = new URLSearchParams({ threshold: $("threshold").value });
  if ($("mm").value) query.set("mm", $("mm").value);
  if (known()) query.set("known", known());
  try {
    const options = { method: "POST", body: of.prob, signal: own.signal };
    const measured = await (await ask(`/measure?${query}`, options)).json();
    of.measured = { ...measured, threshold: $("threshold").value };
    complain(null);
    list(of.measured);
  } catch (error) {
    if (error.name === "AbortError") return;
    list({ cracks: [], unit: "px" });
    $("summary").textContent = error.message;
  }
  offer();
}

// --- two points of known distance ---------------------------------------------------------------------------------

function known() { // x1,y1,x2,y2,mm in pixels of the photograph; "" unless all of it is there
  const distance = $("known");
  if (view.points.length < 2 || !distance.value || !distance.validity.valid) return "";
  return [...view.points.flat().map((value) => value / facts.scale), distance.value].join(",");
}

function taking(on) {
  $("take").setAttribute("aria-pressed", on);
  $("view").classList.toggle("taking", on);
  view.take = on ? taken : null;
  if (on && view.points.length === 2) drop();
  pointed();
}

function drop() {
  const used = known();
  view.points = [];
  if (used) remeasure();
}

function taken(x, y) {
  view.points = [...view.points, [x, y]];
  if (view.points.length < 2) return pointed();
  taking(false);
  $("known").focus();
  if (known()) remeasure();
}

taken.words = ["Click the first point in the picture, or move it under the cross and press Enter.", "Now the second point."];

function pointed() { // what is to be done next
  const { points: [a, b], take } = view;
  const apart = b && (Math.hypot(a[0] - b[0], a[1] - b[1]) / facts.scale).toFixed(1);
  $("take-help").textContent = b ? `The points are ${apart} pixels of the photograph apart.`
    : take ? taken.words[view.points.length] : "";
  $("drop-points").hidden = !a;
  view.draw();
}

function list({ cracks, unit, pixel, total, widest, share, notes = [] }) {
  const number = (value) => value.toFixed(value < 100 ? 2 : 1);
  $("summary").textContent = !cracks.length ? "No crack at this threshold."
    : `${cracks.length} ${cracks.length === 1 ? "crack" : "cracks"}, ${number(total)} ${unit} long together, `
      + `at most ${number(widest)} ${unit} wide; ${(share * 100).toFixed(2)} % of the picture.`
      + (pixel ? ` A pixel of the photograph is ${pixel}.` : "") + notes.map((note) => ` Note: ${note}.`).join("");
  for (const element of document.querySelectorAll(".unit")) element.textContent = `[${unit}]`;
  $("table").tBodies[0].replaceChildren(...cracks.slice(0, ROWS).map((crack) => row(crack, number)));
  $("table").removeAttribute("aria-busy");
  $("table").hidden = !cracks.length;
  $("more").textContent = (cracks.length > ROWS ? `The first ${ROWS} of ${cracks.length}; the files have all. ` : "")
    + (cracks.length && unit === "px" ? "Pixels are those of the photograph." : "");
  view.boxes = cracks.slice(0, ROWS).map((crack) => crack.box);
  view.draw();
}

function row(crack, number) {
  const line = document.createElement("tr"), show = document.createElement("button");
  Object.assign(show, { type: "button", className: "plain", textContent: crack.number });
  show.setAttribute("aria-label", `Crack ${crack.number}: show it in the picture`);
  show.addEventListener("click", () => {
    view.look(crack.box);
    $("view").scrollIntoView({ block: "nearest" });
  });
  line.insertCell().append(show);
  for (const value of [crack.length, crack.mean_width, crack.max_width]) line.insertCell().textContent = number(value);
  line.insertCell().textContent = `${Math.round(crack.orientation)}°`;
  line.insertCell().textContent = `${Math.round(100 * crack.confidence)} %`;
  return line;
}

// --- files --------------------------------------------------------------------------------------------------------

function results() { // [name, Blob] each
  const { stem, measured } = result, at = measured && `${stem}_${measured.threshold}`;
  const pictures = [["sr", result.sr], ["prob", result.prob], ["kernel", result.kernel]].filter(([, blob]) => blob);
  const files = pictures.map(([name, blob]) => [`${stem}_${name}.${blob.type.split("/")[1].replace("jpeg", "jpg")}`, blob]);
  if (!measured) return files;
  const mask = Uint8Array.from(atob(measured.mask), (letter) => letter.charCodeAt(0));
  return [...files, [`${at}_mask.png`, new Blob([mask], { type: "image/png" })],
    [`${at}_cracks.csv`, new Blob([measured.csv], { type: "text/csv" })],
    [`${at}_cracks.geojson`, new Blob([measured.geojson], { type: "application/geo+json" })]];
}

function offer() {
  const size = (bytes) => bytes < 1e6 ? `${Math.ceil(bytes / 1e3)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
  for (const link of document.querySelectorAll("#downloads a")) URL.revokeObjectURL(link.href);
  $("downloads").replaceChildren(...results().map(([name, blob]) => {
    const item = document.createElement("li"), link = document.createElement("a");
    Object.assign(link, { href: URL.createObjectURL(blob), download: name, textContent: name });
    item.append(link, ` ${size(blob.size)}`);
    return item;
  }));
}

async function save() {
  const link = document.createElement("a");
  Object.assign(link, { href: URL.createObjectURL(await zip(results())), download: `${result.stem}.zip` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

// --- events -------------------------------------------------------------------------------------------------------

$("file").addEventListener("change", () => {
  const [file] = $("file").files;
  $("file").value = ""; // so that the same file can be chosen again
  if (file) choose(file);
});
for (const name of ["dragenter", "dragover", "dragleave", "drop"]) {
  addEventListener(name, (event) => { // on the whole window, lest a photograph beside the field replace the page
    event.preventDefault();
    $("drop").classList.toggle("over", name === "dragenter" || name === "dragover");
    if (name === "drop" && event.dataTransfer.files.length) choose(event.dataTransfer.files[0]);
  });
}
addEventListener("paste", (event) => { if (event.clipboardData.files.length) choose(event.clipboardData.files[0]); });
$("cancel").addEventListener("click", () => { cancel(); $("work").hidden = true; });
$("threshold").addEventListener("input", () => rethreshold());
$("mm").addEventListener("input", () => $("mm").validity.valid && remeasure());
$("take").addEventListener("click", () => {
  taking(!view.take);
  if (view.take) $("view").focus({ preventScroll: true });
});
$("known").addEventListener("input", () => view.points.length === 2 && $("known").validity.valid && remeasure());
$("drop-points").addEventListener("click", () => { drop(); taking(false); });
$("wipe").addEventListener("input", () => { view.wipe = $("wipe").value / 100; view.draw(); });
for (const radio of document.getElementsByName("right")) {
  radio.addEventListener("change", () => { view.right = radio.value; view.draw(); });
}
$("show-mask").addEventListener("change", () => { view.showMask = $("show-mask").checked; view.draw(); });
$("show-numbers").addEventListener("change", () => { view.showNumbers = $("show-numbers").checked; view.draw(); });
$("zoom-in").addEventListener("click", () => view.zoom(1.5));
$("zoom-out").addEventListener("click", () => view.zoom(1 / 1.5));
$("zoom-fit").addEventListener("click", () => view.fit());
$("zip").addEventListener("click", save);
begin();
