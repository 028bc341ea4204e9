// The picture: click a thing, drag a box, or paint, to ask what it is. Files may be dropped on it.
const stage = () => element.querySelector(".stage");
const share = (event) => {
  const frame = element.querySelector(".stage img").getBoundingClientRect();
  return [(event.clientX - frame.left) / frame.width, (event.clientY - frame.top) / frame.height];
};
const RADIUS = 0.02; // of the brush, as a share of the picture's width
let mark = null;

function draw() {
  const ink = element.querySelector(".ink");
  const { width, height } = ink.getBoundingClientRect();
  ink.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const points = mark.points.map(([x, y]) => [x * width, y * height]);
  const [[x0, y0], [x1, y1]] = [points[0], points[points.length - 1]];
  ink.innerHTML = mark.kind === "stroke"
    ? `<polyline points="${points.join(" ")}" stroke-width="${2 * RADIUS * width}"/>`
    : `<rect x="${Math.min(x0, x1)}" y="${Math.min(y0, y1)}" width="${Math.abs(x1 - x0)}" height="${Math.abs(y1 - y0)}"/>`;
}

element.dataset.tool = "point";
element.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-tool]");
  if (button) element.dataset.tool = button.dataset.tool;
});
element.addEventListener("pointerdown", (event) => {
  if (!event.target.closest(".stage img") || event.button) return;
  const brush = element.dataset.tool === "stroke";
  mark = { kind: brush ? "stroke" : "box", radius: brush ? RADIUS : 0, points: [share(event)] };
  event.target.setPointerCapture(event.pointerId);
});
element.addEventListener("pointermove", (event) => {
  if (!mark) return;
  if (mark.kind === "stroke") mark.points.push(share(event));
  else mark.points[1] = share(event);
  draw();
});
element.addEventListener("pointerup", (event) => {
  if (!mark) return;
  const [x, y] = share(event);
  const [from] = mark.points;
  const still = Math.hypot(x - from[0], y - from[1]) < 0.02;
  if (mark.kind === "box" && still) mark = { kind: "point", points: [from] };
  trigger("mark", mark);
  mark = null;
});
element.addEventListener("pointercancel", () => {
  mark = null;
  element.querySelector(".ink").innerHTML = "";
});
element.addEventListener("dragover", (event) => event.preventDefault());
element.addEventListener("drop", (event) => {
  event.preventDefault();
  const input = document.querySelector("#picture-drop input[type=file]");
  if (!input || !event.dataTransfer.files.length) return;
  input.files = event.dataTransfer.files;
  input.dispatchEvent(new Event("change", { bubbles: true }));
});
