// The heat map: labelled cells or one dense map on a canvas, drawn again in place whenever its
// data or width change. Reads colours from the palette it is given and from the theme's variables.
// Every text is drawn or set as text, never as HTML.

const drawings = new WeakMap();

export default function (component) {
  const { parentElement, data, setTriggerValue } = component;
  const root = parentElement.querySelector(".heat");
  if (!root || !data) return undefined;
  let drawing = drawings.get(root);
  if (!drawing) {
    drawing = create(root);
    drawings.set(root, drawing);
  }
  drawing.data = data;
  drawing.pick = (id) => setTriggerValue("picked", id);
  drawing.redraw();
  return () => drawing.observer.disconnect();
}

function create(root) {
  const canvas = root.querySelector("canvas");
  const tip = root.querySelector(".tip");
  const drawing = { root, canvas, tip, boxes: [], focus: -1, data: null, pick: () => {} };
  drawing.redraw = () => draw(drawing);
  drawing.observer = new ResizeObserver(() => drawing.data && drawing.redraw());
  drawing.observer.observe(root);
  canvas.onmousemove = (event) => hover(drawing, boxAt(drawing, event), event);
  canvas.onmouseleave = () => hide(drawing);
  canvas.onclick = (event) => open(drawing, boxAt(drawing, event));
  canvas.onblur = () => { drawing.focus = -1; hide(drawing); drawing.redraw(); };
  canvas.onkeydown = (event) => key(drawing, event);
  return drawing;
}

// --- colours -------------------------------------------------------------------------------

function themed(root) {
  const style = getComputedStyle(root);
  const read = (name, fallback) => style.getPropertyValue(name).trim() || fallback;
  return {
    text: read("--st-text-color", "#222"),
    back: read("--st-background-color", "#fff"),
    border: read("--st-border-color", "#ccc"),
    accent: read("--st-primary-color", "#0b6e75"),
    font: read("--st-font", "sans-serif"),
  };
}

const channels = (hex) => [1, 3, 5].map((start) => parseInt(hex.slice(start, start + 2), 16));

function position(value, scale) {
  const share = Math.min(1, Math.max(0, value / scale.high));
  return scale.curve === "log" ? Math.max(0, 1 + Math.log10(Math.max(share, 1e-9)) / 4) : share;
}

function mixed(colours, place) {
  const last = colours.length - 1;
  const low = Math.min(last - 1, Math.floor(place * last));
  const part = place * last - low;
  const from = channels(colours[low]);
  const to = channels(colours[low + 1]);
  return from.map((channel, i) => Math.round(channel + (to[i] - channel) * part));
}

const css = (rgb) => `rgb(${rgb[0]} ${rgb[1]} ${rgb[2]})`;

function inkOn(rgb) {
  const linear = rgb.map((c) => (c / 255 <= 0.03928 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
  const luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  return luminance > 0.21 ? "#111820" : "#ffffff";
}

// --- drawing -------------------------------------------------------------------------------

function draw(drawing) {
  const { root, canvas, data } = drawing;
  const width = Math.floor(root.clientWidth);
  if (!width) return;
  const theme = themed(root);
  const plan = data.dense ? planDense(data.dense, width) : planSections(data.sections, width, theme);
  const height = plan.bottom + 58;
  const ratio = window.devicePixelRatio || 1;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    canvas.style.height = `${height}px`;
  }
  canvas.setAttribute("aria-label", `${data.title}. ${data.alt}`);
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.fillStyle = theme.back;
  pen.fillRect(0, 0, width, height);
  drawing.boxes = [];
  if (data.dense) drawDense(drawing, pen, plan, theme);
  else plan.sections.forEach((section) => drawSection(drawing, pen, section, theme));
  outline(drawing, pen, theme);
  drawBar(pen, data.scale, plan.left, plan.bottom + 24, Math.min(260, width - plan.left - 20), theme);
}

function planSections(sections, width, theme) {
  const pen = document.createElement("canvas").getContext("2d");
  pen.font = `13px ${theme.font}`;
  const labels = sections.flatMap((section) => section.rows);
  const left = Math.min(190, Math.max(24, ...labels.map((label) => pen.measureText(label).width)) + 12);
  let top = 4;
  const planned = sections.map((section) => {
    const room = (width - left - 4) / section.columns.length;
    const cellWidth = section.gaps ? Math.min(96, room) : room;
    const cellHeight = section.rows.length <= 14 ? 30 : section.rows.length <= 26 ? 22 : 14;
    const head = (section.groups.length ? 20 : 0) + (section.columns.some(Boolean) ? 18 : 0);
    const place = { section, left, top: top + head, head, cellWidth, cellHeight };
    top = place.top + section.rows.length * cellHeight + 14;
    return place;
  });
  return { sections: planned, left, bottom: top };
}

function drawSection(drawing, pen, place, theme) {
  const { section, left, top, cellWidth, cellHeight } = place;
  const gap = section.gaps ? 1.5 : 0;
  drawHeads(pen, place, theme);
  pen.textBaseline = "middle";
  pen.textAlign = "right";
  pen.font = `13px ${theme.font}`;
  pen.fillStyle = theme.text;
  section.rows.forEach((label, row) => pen.fillText(label, left - 8, top + (row + 0.5) * cellHeight, left - 10));
  const titles = titlesOf(section);
  for (const [row, column, value, text, reading, id] of section.cells) {
    const box = {
      x: left + column * cellWidth + gap / 2, y: top + row * cellHeight + gap / 2,
      w: cellWidth - gap, h: cellHeight - gap, hover: [`${section.rows[row]}, ${titles[column]}`.replace(/[, ]+$/, ""), reading].filter(Boolean).join("\n"),
      id, joined: !section.gaps,
    };
    drawCell(drawing, pen, box, value, text, theme);
    drawing.boxes.push(box);
  }
}

// Every column's title in full: its group's, then its own.
function titlesOf(section) {
  const groups = section.groups.flatMap(([title, span]) => Array(span).fill(title));
  return section.columns.map((label, i) => [groups[i], section.gaps ? label : ""].filter(Boolean).join(" "));
}

function drawHeads(pen, { section, left, top, head, cellWidth }, theme) {
  pen.textAlign = "center";
  pen.textBaseline = "alphabetic";
  pen.fillStyle = theme.text;
  let column = 0;
  pen.font = `600 13px ${theme.font}`;
  for (const [title, span] of section.groups) {
    const x = left + column * cellWidth;
    pen.fillText(title, x + (span * cellWidth) / 2, top - head + 14, span * cellWidth - 2);
    if (span > 1) {
      pen.fillStyle = theme.border;
      pen.fillRect(x + 3, top - head + 18, span * cellWidth - 6, 1);
      pen.fillStyle = theme.text;
    }
    column += span;
  }
  pen.font = `12px ${theme.font}`;
  pen.globalAlpha = 0.8;
  section.columns.forEach((label, i) => pen.fillText(label, left + (i + 0.5) * cellWidth, top - 5,
    section.gaps ? cellWidth - 2 : 80));
  pen.globalAlpha = 1;
}

function drawCell(drawing, pen, box, value, text, theme) {
  const { scale } = drawing.data;
  const shown = value !== null && value > 0;
  const rgb = shown ? mixed(scale.colours, position(value, scale)) : channels(scale.empty);
  pen.fillStyle = css(rgb);
  pen.fillRect(box.x, box.y, Math.max(box.w, 1) + (box.joined ? 0.7 : 0), box.h);
  if (!text || box.h < 13) return;
  const fits = [12, 11, 10].find((points) => {
    pen.font = `${points}px ${theme.font}`;
    return pen.measureText(text).width <= box.w - 3;
  });
  if (!fits) return;
  pen.fillStyle = inkOn(rgb);
  pen.textAlign = "center";
  pen.textBaseline = "middle";
  pen.fillText(text, box.x + box.w / 2, box.y + box.h / 2 + 0.5);
}

function outline(drawing, pen, theme) {
  drawing.boxes.forEach((box, i) => {
    const chosen = box.id && box.id === drawing.data.selected;
    if (!chosen && i !== drawing.focus) return;
    pen.strokeStyle = chosen ? theme.accent : theme.text;
    pen.lineWidth = 2.5;
    pen.strokeRect(box.x + 1, box.y + 1, box.w - 2, box.h - 2);
  });
}

function planDense(dense, width) {
  const left = 4;
  const pixel = Math.max(1, Math.min(8, (Math.min(width - 2 * left, 720)) / dense.width, 460 / dense.height));
  return { left, top: 4, pixel, bottom: 4 + dense.height * pixel + 8 };
}

function drawDense(drawing, pen, plan, theme) {
  const { dense, scale } = drawing.data;
  const { left, top, pixel } = plan;
  pen.fillStyle = scale.empty;
  pen.fillRect(left, top, dense.width * pixel, dense.height * pixel);
  const full = dense.block[0] * dense.block[1];
  dense.counts.forEach((count, i) => {
    if (!count) return;
    const row = Math.floor(i / dense.width);
    const column = i % dense.width;
    pen.fillStyle = css(mixed(scale.colours, position(count / full, scale)));
    pen.fillRect(left + column * pixel, top + row * pixel, Math.max(pixel, 1), Math.max(pixel, 1));
  });
  pen.strokeStyle = theme.border;
  pen.lineWidth = 1;
  pen.strokeRect(left - 0.5, top - 0.5, dense.width * pixel + 1, dense.height * pixel + 1);
  drawing.plan = plan;
}

function drawBar(pen, scale, left, top, width, theme) {
  const steps = 60;
  for (let i = 0; i < steps; i += 1) {
    pen.fillStyle = css(mixed(scale.colours, i / (steps - 1)));
    pen.fillRect(left + (i * width) / steps, top, width / steps + 0.6, 9);
  }
  pen.fillStyle = theme.text;
  pen.textBaseline = "top";
  pen.font = `12px ${theme.font}`;
  scale.ticks.forEach(([value, label], i) => {
    const x = left + position(value, scale) * width;
    pen.fillRect(Math.min(x, left + width - 1), top + 9, 1, 4);
    pen.textAlign = i === 0 ? "left" : "center";
    pen.fillText(label, x, top + 15);
  });
  pen.textAlign = "left";
  pen.textBaseline = "alphabetic";
  pen.fillText(scale.unit, left, top - 5);
}

// --- pointer and keyboard ------------------------------------------------------------------

function boxAt(drawing, event) {
  const { data, plan } = drawing;
  if (data.dense) return denseAt(data.dense, plan, event.offsetX, event.offsetY);
  const inside = (box) => event.offsetX >= box.x && event.offsetX < box.x + box.w
    && event.offsetY >= box.y && event.offsetY < box.y + box.h;
  return drawing.boxes.find(inside);
}

function denseAt(dense, plan, x, y) {
  const column = Math.floor((x - plan.left) / plan.pixel);
  const row = Math.floor((y - plan.top) / plan.pixel);
  if (row < 0 || column < 0 || row >= dense.height || column >= dense.width) return undefined;
  const span = (start, size, end) => `${start}\u2013${Math.min(start + size, end) - 1}`;
  const rows = span(row * dense.block[0], dense.block[0], dense.shape[0]);
  const columns = span(column * dense.block[1], dense.block[1], dense.shape[1]);
  const height = Math.min(dense.block[0], dense.shape[0] - row * dense.block[0]);
  const width = Math.min(dense.block[1], dense.shape[1] - column * dense.block[1]);
  const count = dense.counts[row * dense.width + column];
  return { x, y, w: 0, h: 0, id: "", hover: `rows ${rows}, columns ${columns}\n${count} of ${height * width} selected` };
}

function hover(drawing, box, event) {
  if (!box || !box.hover) return hide(drawing);
  const { tip, canvas } = drawing;
  canvas.style.cursor = box.id ? "pointer" : "default";
  tip.textContent = box.hover;
  const x = event ? event.offsetX : box.x + box.w / 2;
  const y = event ? event.offsetY : box.y + box.h;
  tip.style.left = `${Math.max(0, Math.min(x + 14, drawing.root.clientWidth - tip.offsetWidth - 4))}px`;
  tip.style.top = `${y + 16}px`;
  tip.style.visibility = "visible";
  return undefined;
}

function hide(drawing) {
  drawing.tip.style.visibility = "hidden";
  drawing.canvas.style.cursor = "default";
}

function open(drawing, box) {
  if (box && box.id) drawing.pick(box.id);
}

function key(drawing, event) {
  const moves = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] };
  if (event.key === "Enter" || event.key === " ") {
    event.preventDefault();
    open(drawing, drawing.boxes[drawing.focus]);
  } else if (moves[event.key] && drawing.boxes.length) {
    event.preventDefault();
    drawing.focus = drawing.focus < 0 ? 0 : neighbour(drawing, moves[event.key]);
    drawing.redraw();
    hover(drawing, drawing.boxes[drawing.focus], null);
  }
}

function neighbour(drawing, [right, down]) {
  const from = drawing.boxes[drawing.focus];
  const centre = (box) => [box.x + box.w / 2, box.y + box.h / 2];
  const [x, y] = centre(from);
  let best = drawing.focus;
  let least = Infinity;
  drawing.boxes.forEach((box, i) => {
    const [u, v] = centre(box);
    const along = right * (u - x) + down * (v - y);
    const across = Math.abs(right ? v - y : u - x);
    const distance = along + 4 * across;
    if (along > 1 && distance < least) { least = distance; best = i; }
  });
  return best;
}
