// Curves: one threshold reads all of them, set by a slider or by pointing.
{
  const SVG = "http://www.w3.org/2000/svg";
  const AREA = { left: 46, right: 468, top: 10, bottom: 298, width: 480, height: 340 };
  const draw = (name, attributes) => {
    const element = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    return element;
  };
  const place = (x, y) => [AREA.left + x * (AREA.right - AREA.left), AREA.bottom - y * (AREA.bottom - AREA.top)];
  const curved = data.results.filter((result) => result.curves.image);
  const looks = [...document.querySelectorAll("#plot-1 .series")].map((group) => group.getAttribute("class"));

  const readCurves = (level) => {
    byId("read").value = level;
    byId("read").setAttribute("aria-valuetext", percent(level));
    byId("read-at").textContent = percent(level);
    byId("reading-caption").textContent = `At threshold ${percent(level)} (point at a curve, or move the slider)`;
    byId("reading").tBodies[0].replaceChildren(...curved.map((result) => readingRow(result, level - 1)));
    const [x] = place(level / 100, 0);
    byId("plot-1").querySelector(".cursor").replaceChildren(draw("line", { x1: x, x2: x, y1: AREA.top, y2: AREA.bottom }));
    byId("plot-2")?.querySelector(".cursor").replaceChildren(...curved.flatMap((result, i) => points(result, level - 1, looks[i])));
  };
  const readingRow = ({ name, curves: { image, pooled } }, at) => {
    const row = make("tr");
    row.append(make("th", name, { scope: "row" }));
    for (const curve of [image.iou, pooled.iou, image.precision, image.recall, pooled.precision, pooled.recall]) {
      row.append(make("td", number(curve?.[at], 3), { className: "number" }));
    }
    return row;
  };
  const points = ({ curves: { image, pooled } }, at, look) =>
    [image, pooled].flatMap(({ recall, precision }) => {
      if (!recall || precision[at] === null) return [];
      const [cx, cy] = place(recall[at], precision[at]);
      return [draw("circle", { cx, cy, r: 4, class: look })];
    });
  const pointed = (event) => {
    const box = event.currentTarget.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * AREA.width, ((event.clientY - box.top) / box.height) * AREA.height];
  };
  const nearest = (x, y) => {
    let best = [Infinity, 50];
    for (const { curves: { image, pooled } } of curved) {
      for (const { recall, precision } of [image, pooled]) {
        recall?.forEach((value, at) => {
          if (precision[at] === null) return;
          const [px, py] = place(value, precision[at]);
          const far = (px - x) ** 2 + (py - y) ** 2;
          if (far < best[0]) best = [far, at + 1];
        });
      }
    }
    return best[1];
  };
  if (byId("read")) {
    byId("read").addEventListener("input", (event) => readCurves(Number(event.target.value)));
    byId("plot-1").addEventListener("pointermove", (event) => {
      const share = (pointed(event)[0] - AREA.left) / (AREA.right - AREA.left);
      readCurves(Math.min(99, Math.max(1, Math.round(share * 100))));
    });
    byId("plot-2")?.addEventListener("pointermove", (event) => readCurves(nearest(...pointed(event))));
    readCurves(50);
  }
}
