// The choice of a part of a photograph that is larger than the server takes.

export class Part {
  constructor(section, text, canvas, button) {
    Object.assign(this, { section, text, canvas, button });
    canvas.addEventListener("pointerdown", (event) => { canvas.setPointerCapture(event.pointerId); this.#centre(event); });
    canvas.addEventListener("pointermove", (event) => event.buttons && this.#centre(event));
    canvas.addEventListener("keydown", (event) => this.#key(event));
    button.addEventListener("click", () => this.#take());
    new ResizeObserver(() => this.#draw()).observe(canvas);
  }

  // Offer an ImageBitmap; `most` pixels may be taken; `take(blob, x, y)` gets the part as PNG and its upper left.
  offer(picture, most, take) {
    const side = Math.floor(Math.sqrt(most));
    this.wide = Math.min(picture.width, Math.max(side, Math.floor(most / picture.height)));
    this.tall = Math.min(picture.height, Math.floor(most / this.wide));
    Object.assign(this, { picture, take, x: (picture.width - this.wide) >> 1, y: (picture.height - this.tall) >> 1 });
    this.text.textContent = `The photograph has ${picture.width} x ${picture.height} pixels, more than this page takes at `
      + `once. Move the frame of ${this.wide} x ${this.tall} pixels with the pointer or the arrow keys.`;
    const ratio = picture.width / picture.height;
    Object.assign(this.canvas.style, { aspectRatio: ratio, width: `min(100%, ${70 * ratio}vh)` });
    this.section.hidden = false;
    this.#draw();
    this.canvas.focus();
  }

  close() {
    this.section.hidden = true;
    this.picture?.close();
    this.picture = null;
  }

  #draw() {
    if (!this.picture) return;
    const { canvas, picture } = this, sharp = devicePixelRatio || 1;
    canvas.width = Math.max(1, Math.round(canvas.clientWidth * sharp));
    canvas.height = Math.max(1, Math.round(canvas.width * picture.height / picture.width));
    const context = canvas.getContext("2d"), scale = canvas.width / picture.width;
    const frame = [this.x, this.y, this.wide, this.tall].map((value) => value * scale);
    context.imageSmoothingQuality = "high";
    context.drawImage(picture, 0, 0, canvas.width, canvas.height);
    context.fillStyle = "#000a";
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.drawImage(picture, this.x, this.y, this.wide, this.tall, ...frame);
    context.lineWidth = 2 * sharp;
    context.strokeStyle = "#fff";
    context.strokeRect(...frame);
  }

  #move(x, y) {
    this.x = Math.round(Math.min(Math.max(x, 0), this.picture.width - this.wide));
    this.y = Math.round(Math.min(Math.max(y, 0), this.picture.height - this.tall));
    this.#draw();
  }

  #centre(event) {
    const scale = this.picture.width / this.canvas.clientWidth;
    this.#move(event.offsetX * scale - this.wide / 2, event.offsetY * scale - this.tall / 2);
  }

  #key(event) {
    const step = Math.max(1, Math.round(this.wide / 8));
    const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
    if (event.key === "Enter") this.#take();
    else if (moves[event.key]) this.#move(this.x + moves[event.key][0], this.y + moves[event.key][1]);
    else return;
    event.preventDefault();
  }

  async #take() {
    const { picture, x, y, wide, tall, take } = this, canvas = new OffscreenCanvas(wide, tall);
    canvas.getContext("2d").drawImage(picture, -x, -y);
    const blob = await canvas.convertToBlob({ type: "image/png" });
    this.close();
    take(blob, x, y);
  }
}
