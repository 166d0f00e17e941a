// A person's verdict: right, wrong, or fixed by dragging the box and the interval; see o3jax/report/review.py.
const fix = { verdict: null, at: 0, items: structuredClone(data.evidence), changed: false };
const words = data.words;
const [form, editor, range, itemList, saved, note] = ["fix", "editor", "range", "fix-items", "saved", "fix-note"].map((id) => document.getElementById(id));
const within = (value, low, high) => Math.min(high, Math.max(low, value));
const FIELDS = ["time_s", "start", "end", "x1", "y1", "x2", "y2"];

function fieldOf(item, name) {
  if (name === "time_s") return item.time_s;
  if (name === "start" || name === "end") return item.interval?.[name === "end" ? 1 : 0];
  const at = ["x1", "y1", "x2", "y2"].indexOf(name);
  return item.box && item.box[at] * data.size[at % 2];
}

function setField(item, name, value) {
  fix.changed = true;
  if (name === "time_s") { item.time_s = within(value, 0, data.duration); return; }
  if (name === "start" || name === "end") {
    const [start, end] = item.interval ?? [item.time_s, item.time_s];
    const moved = within(value, 0, data.duration);
    item.interval = name === "start" ? [moved, Math.max(moved, end)] : [Math.min(start, moved), moved];
    return;
  }
  const at = ["x1", "y1", "x2", "y2"].indexOf(name), box = item.box ?? [0.25, 0.25, 0.75, 0.75];
  setBox(item, box.map((v, i) => (i === at ? value / data.size[at % 2] : v)));
}

function setBox(item, box) {
  const [x1, y1, x2, y2] = box.map((v) => within(v, 0, 1)), [w, h] = data.size;
  if (x2 - x1 < 0.5 / w || y2 - y1 < 0.5 / h) return;
  item.box = [x1, y1, x2, y2];
  fix.changed = true;
}

function drawFix() {
  const item = fix.verdict === "fixed" ? fix.items[fix.at] : null;
  form.hidden = fix.verdict !== "fixed";
  overlay.hidden = Boolean(item);
  editor.replaceChildren();
  range.hidden = !item?.interval;
  for (const set of itemList.children) {
    const own = fix.items[set.dataset.at];
    set.dataset.current = String(Number(set.dataset.at) === fix.at);
    for (const input of set.querySelectorAll("input")) {
      const value = fieldOf(own, input.name);
      if (document.activeElement !== input) input.value = value == null ? "" : Number(value.toFixed(2));
    }
  }
  if (item?.interval) {
    const [start, end] = item.interval;
    range.style.left = `${100 * start / data.duration}%`; range.style.width = `${100 * (end - start) / data.duration}%`;
  }
  if (!item?.box) return;
  const [x1, y1, x2, y2] = item.box, box = document.createElement("div");
  box.className = "box"; box.tabIndex = 0; box.setAttribute("role", "group"); box.setAttribute("aria-label", `${item.object}: ${words.box}`);
  box.style.cssText = `left:${100 * x1}%;top:${100 * y1}%;width:${100 * (x2 - x1)}%;height:${100 * (y2 - y1)}%`;
  for (const [name, sides] of [["nw", [0, 1]], ["ne", [2, 1]], ["sw", [0, 3]], ["se", [2, 3]]]) {
    const handle = document.createElement("i");
    handle.className = name;
    drag(handle, editor, (dx, dy, before) => setBox(item, before.map((v, i) => (i === sides[0] ? v + dx : i === sides[1] ? v + dy : v))), () => item.box);
    box.append(handle);
  }
  const move = (dx, dy, before) => {
    const x = within(dx, -before[0], 1 - before[2]), y = within(dy, -before[1], 1 - before[3]);
    setBox(item, before.map((v, i) => v + (i % 2 ? y : x)));
  };
  drag(box, editor, move, () => item.box);
  box.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    const [dx, dy] = step.map((v, i) => v / data.size[i]);
    if (event.shiftKey) setBox(item, item.box.map((v, i) => (i < 2 ? v : v + [dx, dy][i - 2]))); else move(dx, dy, item.box);
    drawFix();
    editor.firstChild.focus();
  });
  editor.append(box);
}

function drag(element, area, change, read) {
  element.addEventListener("pointerdown", (event) => {
    event.preventDefault(); event.stopPropagation();
    const before = structuredClone(read()), size = area.getBoundingClientRect(), [x, y] = [event.clientX, event.clientY];
    const moved = (now) => { change((now.clientX - x) / size.width, (now.clientY - y) / size.height, before); drawFix(); };
    const done = () => { removeEventListener("pointermove", moved); removeEventListener("pointerup", done); };
    addEventListener("pointermove", moved); addEventListener("pointerup", done);
  });
  element.addEventListener("click", (event) => event.stopPropagation());
}

for (const [className, at] of [["start", 0], ["end", 1]]) {
  const set = (dx, _, before) => setField(fix.items[fix.at], className, before[at] + dx * data.duration);
  drag(range.querySelector(`.${className}`), timeline, set, () => fix.items[fix.at].interval);
}
drag(range, timeline, (dx, _, before) => {
  const by = within(dx * data.duration, -before[0], data.duration - before[1]);
  fix.items[fix.at].interval = before.map((v) => v + by); fix.changed = true;
}, () => fix.items[fix.at].interval);

itemList.replaceChildren(...fix.items.map((item, at) => {
  const set = document.createElement("fieldset"), legend = document.createElement("legend");
  set.dataset.at = at; legend.textContent = item.object; set.append(legend);
  for (const name of FIELDS) {
    const label = document.createElement("label"), input = document.createElement("input");
    label.textContent = words[name] ?? name; input.type = "number"; input.step = "any"; input.name = name;
    input.addEventListener("change", () => { if (input.value !== "") setField(item, name, Number(input.value)); drawFix(); });
    label.append(input); set.append(label);
  }
  const now = document.createElement("button");
  now.type = "button"; now.className = "chip"; now.textContent = words.now;
  now.addEventListener("click", () => { setField(item, "time_s", shown()); drawFix(); });
  set.append(now);
  set.addEventListener("focusin", () => { if (fix.at !== at) { fix.at = at; seek(item.time_s, Infinity); drawFix(); } });
  return set;
}));
document.querySelectorAll("[data-evidence]").forEach((button, at) => button.addEventListener("click", () => { fix.at = at; drawFix(); }));

for (const button of document.querySelectorAll("[data-verdict]")) {
  button.addEventListener("click", () => {
    fix.verdict = button.dataset.verdict;
    for (const other of document.querySelectorAll("[data-verdict]")) other.setAttribute("aria-pressed", other === button);
    document.getElementById("save").disabled = false;
    drawFix();
  });
}

document.getElementById("save").addEventListener("click", () => {
  const text = document.getElementById("fix-answer"), fixed = fix.verdict === "fixed";
  const review = {
    verdict: fix.verdict,
    answer: fixed && text.value !== text.defaultValue ? text.value : null,
    evidence: fixed && fix.changed ? fix.items : null,
    note: note.value,
  };
  if (parent !== window) { parent.postMessage({ review }, location.origin); return; }
  const link = document.createElement("a"), name = decodeURIComponent(location.pathname.split("/").pop());
  link.href = URL.createObjectURL(new Blob([JSON.stringify(review, null, 2)], { type: "application/json" }));
  link.download = `${name.replace(/\.html?$/, "") || "answer"}.review.json`;
  link.click();
  saved.textContent = words.saved;
});
addEventListener("message", (event) => {
  if (event.source !== parent || parent === window || event.origin !== location.origin) return;
  saved.textContent = event.data.saved ? words.saved : String(event.data.failed ?? "");
});
