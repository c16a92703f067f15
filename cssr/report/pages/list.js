// Every image: a table that is searched, sorted and paged.
{
  const PAGE = 50;
  const list = { begin: 0, column: 0, down: false };
  const viewed = () => {
    const [what, index] = byId("view").value.split(" ");
    const { columns, results } = data.images;
    if (what === "result") {
      const { keys, values } = results[index];
      return { columns, rows: keys.map((key, i) => [key, ...columns.map((column) => values[column.key][i])]) };
    }
    const column = columns[index];
    const keys = [...new Set(results.flatMap((result) => result.keys))];
    const found = results.map(({ keys: own, values }) => new Map(own.map((key, i) => [key, values[column.key][i]])));
    const named = data.results.map(({ name }) => ({ ...column, label: name }));
    return { columns: named, rows: keys.map((key) => [key, ...found.map((values) => values.get(key) ?? null)]) };
  };
  const heading = (label, index) => {
    const cell = make("th", undefined, { scope: "col", className: index ? "number" : "" });
    if (index === list.column) cell.setAttribute("aria-sort", list.down ? "descending" : "ascending");
    cell.append(make("button", label, { type: "button", className: "sort" }));
    return cell;
  };
  const listRow = ([key, ...values], columns) => {
    const row = make("tr");
    row.append(make("th", key, { scope: "row" }));
    values.forEach((value, i) => row.append(make("td", number(value, columns[i].decimals), { className: "number" })));
    return row;
  };
  const showList = () => {
    const { columns, rows } = viewed(), wanted = byId("search").value.trim().toLowerCase();
    if (list.column > columns.length) list.column = 0;
    const kept = rows.filter(([key]) => key.toLowerCase().includes(wanted)).sort((a, b) => compare(a[list.column], b[list.column], list.down));
    list.begin = Math.max(0, Math.min(list.begin, PAGE * Math.floor((kept.length - 1) / PAGE)));
    const end = Math.min(list.begin + PAGE, kept.length);
    byId("list").tHead.rows[0].replaceChildren(...["key", ...columns.map(({ label }) => label)].map(heading));
    byId("list").tBodies[0].replaceChildren(...kept.slice(list.begin, end).map((row) => listRow(row, columns)));
    byId("list-caption").textContent = byId("view").selectedOptions[0].text;
    byId("place").textContent = kept.length ? `${list.begin + 1} to ${end} of ${kept.length} images` : "no image has such a key";
    byId("before").disabled = list.begin === 0;
    byId("after").disabled = end >= kept.length;
  };
  const page = (by) => {
    list.begin += by * PAGE;
    showList();
  };
  if (byId("list")) {
    byId("view").addEventListener("input", showList);
    byId("search").addEventListener("input", () => page(-Infinity));
    byId("before").addEventListener("click", () => page(-1));
    byId("after").addEventListener("click", () => page(1));
    byId("list").tHead.addEventListener("click", (event) => {
      const index = event.target.closest("button")?.closest("th").cellIndex;
      if (index === undefined) return;
      Object.assign(list, { begin: 0, down: index === list.column ? !list.down : index > 0, column: index });
      showList();
      byId("list").tHead.rows[0].cells[index].firstChild.focus();
    });
    showList();
  }
}
