// The PNG button: draws the figure beside it, as it is shown, twice as large, under its title.
// Works on the three kinds of figure: the heat map's canvas, Vega's and Plotly's drawings.

export default function (component) {
  const { parentElement, data } = component;
  const button = parentElement.querySelector("button");
  if (!button || !data) return;
  button.title = `Save “${data.title}” as a picture`;
  button.onclick = () => save(parentElement, data);
}

async function save(parentElement, data) {
  const figure = document.querySelector(`.st-key-${CSS.escape(data.target)}`);
  const layers = figure ? drawings(figure) : [];
  if (!layers.length) return;
  const frame = layers.map((layer) => layer.getBoundingClientRect());
  const left = Math.min(...frame.map((box) => box.left));
  const top = Math.min(...frame.map((box) => box.top));
  const width = Math.max(...frame.map((box) => box.right)) - left;
  const height = Math.max(...frame.map((box) => box.bottom)) - top;
  const style = getComputedStyle(parentElement.host ?? parentElement);
  const canvas = Object.assign(document.createElement("canvas"), { width: 2 * (width + 32), height: 2 * (height + 64) });
  const pen = canvas.getContext("2d");
  pen.scale(2, 2);
  pen.fillStyle = style.getPropertyValue("--st-background-color") || "#fff";
  pen.fillRect(0, 0, width + 32, height + 64);
  pen.fillStyle = style.getPropertyValue("--st-text-color") || "#000";
  pen.font = `600 16px ${style.getPropertyValue("--st-font") || "sans-serif"}`;
  pen.fillText(data.title, 16, 30, width);
  for (const [i, layer] of layers.entries()) {
    const picture = layer instanceof HTMLCanvasElement ? layer : await rasterised(layer);
    pen.drawImage(picture, 16 + frame[i].left - left, 48 + frame[i].top - top, frame[i].width, frame[i].height);
  }
  const link = document.createElement("a");
  link.download = `${data.name}.png`;
  link.href = canvas.toDataURL("image/png");
  link.click();
}

function drawings(figure) {
  const plotly = [...figure.querySelectorAll("svg.main-svg")];
  if (plotly.length) return [...figure.querySelectorAll(".gl-container canvas"), ...plotly];
  const vega = figure.querySelector(".vega-embed svg.marks, .vega-embed canvas.marks, svg.marks, canvas.marks");
  if (vega) return [vega];
  for (const element of figure.querySelectorAll("*")) {
    const canvas = element.shadowRoot?.querySelector("canvas");
    if (canvas) return [canvas];
  }
  return [];
}

function rasterised(svg) {
  const copy = svg.cloneNode(true);
  const box = svg.getBoundingClientRect();
  copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
  copy.setAttribute("width", 2 * box.width);
  copy.setAttribute("height", 2 * box.height);
  if (!copy.getAttribute("viewBox")) copy.setAttribute("viewBox", `0 0 ${box.width} ${box.height}`);
  const image = new Image();
  const ready = new Promise((resolve, reject) => { image.onload = () => resolve(image); image.onerror = reject; });
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(new XMLSerializer().serializeToString(copy))}`;
  return ready;
}
