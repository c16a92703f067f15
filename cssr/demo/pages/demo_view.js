// A canvas on which pictures of one size lie on each other: zoomed, moved, and divided by a line.

const LABEL = "600 13px system-ui, sans-serif";
const CLICK = 4; // CSS pixels that a pointer may move in a click
const LABELS = 25; // numbers shown at once
const CRACK = [255, 40, 40, 153]; // RGBA of crack pixels

export class View {
  // Pictures of `width` x `height` SR pixels by name; `left` and `right` of the line; `over` lies on the right ones.
  constructor(canvas) {
    this.canvas = canvas;
    this.layers = {};
    this.right = "sr";
    this.wipe = 0.4;
    this.showMask = this.showNumbers = true;
    this.boxes = [];
    this.points = []; // two at most, SR pixels
    this.take = null; // a function of x and y, SR pixels, while points are taken
    this.pointers = new Map();
    new ResizeObserver(() => this.resize()).observe(canvas);
    this.#listen();
  }

  set(width, height, layers) {
    Object.assign(this, { width, height, layers, boxes: [], points: [], prob: null });
    this.mask = new OffscreenCanvas(width, height);
    this.canvas.style.aspectRatio = `${width} / ${height}`; // its height has bounds in the style sheet
    this.resize();
    this.fit();
  }

  // Colour the pixels whose probability (0..255) exceeds `threshold` (0..1).
  paintMask(prob, threshold) {
    const image = new ImageData(this.width, this.height), pixels = new Uint32Array(image.data.buffer);
    const colour = new Uint32Array(new Uint8Array(CRACK).buffer)[0], bound = threshold * 255;
    for (let i = 0; i < prob.length; i++) if (prob[i] > bound) pixels[i] = colour;
    this.mask.getContext("2d").putImageData(image, 0, 0);
    this.draw();
  }

  resize() {
    const sharp = devicePixelRatio || 1;
    this.canvas.width = Math.max(1, Math.round(this.canvas.clientWidth * sharp));
    this.canvas.height = Math.max(1, Math.round(this.canvas.clientHeight * sharp));
    this.sharp = sharp;
    if (this.fitted) this.fit(); else this.draw();
  }

  fit() {
    this.scale = this.least = Math.min(this.canvas.width / this.width, this.canvas.height / this.height);
    this.x = (this.canvas.width - this.width * this.scale) / 2;
    this.y = (this.canvas.height - this.height * this.scale) / 2;
    this.#moved(true);
  }

  // Zoom by a factor about a point of the canvas, by default its middle.
  zoom(factor, x = this.canvas.width / 2, y = this.canvas.height / 2) {
    const scale = Math.min(Math.max(this.scale * factor, this.least), 16 * this.sharp);
    if (scale <= this.least) return this.fit();
    this.x = x - (x - this.x) * scale / this.scale;
    this.y = y - (y - this.y) * scale / this.scale;
    this.scale = scale;
    return this.#moved(false);
  }

  pan(x, y) {
    if (this.fitted) return;
    this.x += x;
    this.y += y;
    this.#moved(false);
  }

  // Bring a box (left, top, right, bottom; SR pixels) into the middle, with room around it.
  look([left, top, right, bottom]) {
    const room = Math.max(right - left, bottom - top) * 0.5 + 8;
    const scale = Math.min(this.canvas.width / (right - left + room), this.canvas.height / (bottom - top + room));
    this.scale = Math.min(Math.max(scale, this.least), 8 * this.sharp);
    this.x = this.canvas.width / 2 - (left + right) / 2 * this.scale;
    this.y = this.canvas.height / 2 - (top + bottom) / 2 * this.scale;
    this.#moved(false);
  }

  // Keep the picture on the canvas: no gap where it is larger, in the middle where it is smaller.
  #moved(fitted) {
    for (const [at, size, room] of [["x", this.width, this.canvas.width], ["y", this.height, this.canvas.height]]) {
      const free = room - size * this.scale;
      this[at] = free >= 0 ? free / 2 : Math.min(0, Math.max(free, this[at]));
    }
    this.fitted = fitted;
    this.canvas.classList.toggle("zoomed", !fitted);
    this.draw();
  }

  draw() {
    if (this.waiting || !this.layers.sr) return;
    this.waiting = requestAnimationFrame(() => { this.waiting = 0; this.#paint(); });
  }

  #paint() {
    const context = this.canvas.getContext("2d"), { width, height } = this.canvas;
    const line = this.wipe * width;
    context.clearRect(0, 0, width, height);
    this.#within(context, 0, line, () => this.#picture(context, this.layers.lq));
    this.#within(context, line, width, () => {
      this.#picture(context, this.layers[this.right]);
      if (this.showMask) this.#picture(context, this.mask);
    });
    const taken = []; // by labels; those of the longest cracks come first, and no other covers them
    if (this.showNumbers) this.boxes.forEach((box, n) => this.#label(context, box, n + 1, taken));
    this.#cross(context);
    context.fillStyle = "#fff";
    context.fillRect(line - 1.5 * this.sharp, 0, 3 * this.sharp, height);
    context.fillStyle = "#000";
    context.fillRect(line - 0.5 * this.sharp, 0, this.sharp, height);
  }

  // The points, joined, and while they are taken by keyboard the middle, where Enter sets one.
  #cross(context) {
    const at = this.points.map(([x, y]) => [this.x + x * this.scale, this.y + y * this.scale]);
    const marks = this.take && document.activeElement === this.canvas ? [...at, this.#middle()] : at, arm = 9 * this.sharp;
    for (const [colour, width] of [["#000", 4], ["#ffd400", 2]]) {
      context.beginPath();
      if (at.length === 2) { context.moveTo(...at[0]); context.lineTo(...at[1]); }
      for (const [x, y] of marks) {
        context.moveTo(x - arm, y); context.lineTo(x + arm, y);
        context.moveTo(x, y - arm); context.lineTo(x, y + arm);
      }
      Object.assign(context, { strokeStyle: colour, lineWidth: width * this.sharp });
      context.stroke();
    }
  }

  #middle() { return [this.canvas.width / 2, this.canvas.height / 2]; }

  // Give a place on the canvas to `take`, unless it is beside the picture.
  #taken(x, y) {
    const place = [(x - this.x) / this.scale, (y - this.y) / this.scale];
    if (place[0] >= 0 && place[1] >= 0 && place[0] <= this.width && place[1] <= this.height) this.take?.(...place);
  }

  #within(context, from, to, paint) {
    context.save();
    context.beginPath();
    context.rect(from, 0, to - from, this.canvas.height);
    context.clip();
    paint();
    context.restore();
  }

  #picture(context, picture) {
    const enlarged = this.scale * this.width / picture.width;
    context.imageSmoothingEnabled = enlarged < 2; // show pixels as such once they can be seen
    context.imageSmoothingQuality = "high";
    context.drawImage(picture, this.x, this.y, this.width * this.scale, this.height * this.scale);
  }

  #label(context, [left, top], number, taken) {
    const text = String(number), sharp = this.sharp;
    context.font = LABEL.replace("13", String(13 * sharp));
    const wide = context.measureText(text).width + 8 * sharp, tall = 18 * sharp;
    const x = Math.max(this.x + left * this.scale, 0), y = Math.max(this.y + top * this.scale - tall, 0);
    const room = tall; // around a label, lest they hide the picture
    const near = ([a, b, w]) => x < a + w + room && a < x + wide + room && Math.abs(y - b) < tall + room;
    if (taken.length >= LABELS || taken.some(near)) return;
    taken.push([x, y, wide]);
    context.fillStyle = "#000c";
    context.fillRect(x, y, wide, tall);
    context.fillStyle = "#fff";
    context.textBaseline = "middle";
    context.fillText(text, x + 4 * sharp, y + tall / 2);
  }

  #listen() {
    const { canvas, pointers } = this;
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      pointers.set(event.pointerId, event);
      this.still = pointers.size === 1 && event.button === 0 && [event.offsetX, event.offsetY];
    });
    canvas.addEventListener("pointermove", ({ offsetX: x, offsetY: y }) => {
      if (this.still && Math.hypot(x - this.still[0], y - this.still[1]) > CLICK) this.still = null;
    });
    canvas.addEventListener("pointerup", (event) => {
      if (this.take && this.still) this.#taken(event.offsetX * this.sharp, event.offsetY * this.sharp);
    });
    for (const event of ["focus", "blur"]) canvas.addEventListener(event, () => this.draw());
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, (e) => pointers.delete(e.pointerId));
    canvas.addEventListener("pointermove", (event) => pointers.has(event.pointerId) && this.#drag(event));
    canvas.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && !event.metaKey && document.activeElement !== canvas) return; // let the page scroll
      event.preventDefault();
      this.zoom(Math.exp(-event.deltaY / 300), event.offsetX * this.sharp, event.offsetY * this.sharp);
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => this.#key(event));
  }

  #drag(event) {
    const before = this.pointers.get(event.pointerId), sharp = this.sharp;
    const other = [...this.pointers.values()].find((pointer) => pointer.pointerId !== event.pointerId);
    if (other) {
      const apart = (a, b) => Math.hypot(a.offsetX - b.offsetX, a.offsetY - b.offsetY);
      this.zoom(apart(event, other) / Math.max(apart(before, other), 1),
        (event.offsetX + other.offsetX) / 2 * sharp, (event.offsetY + other.offsetY) / 2 * sharp);
    } else {
      this.pan((event.offsetX - before.offsetX) * sharp, (event.offsetY - before.offsetY) * sharp);
    }
    this.pointers.set(event.pointerId, event);
  }

  #key(event) {
    const step = 40 * this.sharp;
    const acts = {
      "+": () => this.zoom(1.5), "=": () => this.zoom(1.5), "-": () => this.zoom(1 / 1.5), "0": () => this.fit(),
      ArrowLeft: () => this.pan(step, 0), ArrowRight: () => this.pan(-step, 0),
      ArrowUp: () => this.pan(0, step), ArrowDown: () => this.pan(0, -step),
    };
    if (this.take) acts.Enter = () => this.#taken(...this.#middle());
    if (!acts[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    acts[event.key]();
  }
}
