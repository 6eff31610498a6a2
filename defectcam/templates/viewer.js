// One image, large: steps through a list, zooms and pans. It is told how to draw an image and which
// ones there are, and asks for nothing else.
"use strict";

function makeViewer({ order, draw, describe, closed }) {
  const MOST = 32;
  const dialog = document.getElementById("viewer");
  const stage = document.getElementById("stage");
  const picture = document.getElementById("stage-picture");
  const pointers = new Map();
  let shown = null;
  let size = { w: 1, h: 1 };
  let place = { x: 0, y: 0, scale: 1 };
  let fitted = 1;

  function open(id) {
    shown = id;
    if (!dialog.open) dialog.showModal();
    show();
  }

  function show() {
    size = draw(shown, picture);
    fit();
    refresh();
  }

  // What depends on thresholds; the place of the picture stays.
  function refresh() {
    if (!dialog.open) return;
    const list = order();
    const at = list.indexOf(shown);
    document.getElementById("viewer-place").textContent = at < 0 ? "not among those chosen" : `${at + 1} of ${list.length}`;
    describe(shown, picture, place.scale);
  }

  function step(by) {
    const list = order();
    if (!list.length) return;
    const at = list.indexOf(shown);
    // One that is not in the list was opened from elsewhere: the list is entered at its ends.
    const next = at < 0 ? Math.min(by, 0) : at + by;
    shown = list[(next + list.length) % list.length];
    show();
  }

  function fit() {
    const { width, height } = stage.getBoundingClientRect();
    fitted = Math.min((width - 32) / size.w, (height - 32) / size.h);
    place = { scale: fitted, x: (width - fitted * size.w) / 2, y: (height - fitted * size.h) / 2 };
    put();
  }

  function put() {
    picture.style.width = `${size.w * place.scale}px`;
    picture.style.height = `${size.h * place.scale}px`;
    picture.style.setProperty("--unit", `${1 / place.scale}px`);  // one screen pixel in the image's units
    picture.style.transform = `translate(${place.x}px, ${place.y}px)`;
    stage.classList.toggle("near", place.scale > 6 * fitted);
  }

  // Zoom by a factor about a point of the stage, which keeps its place.
  function zoom(factor, at) {
    const { width, height } = stage.getBoundingClientRect();
    const centre = at ?? { x: width / 2, y: height / 2 };
    const scale = Math.min(MOST * fitted, Math.max(fitted, place.scale * factor));
    if (scale === fitted) return fit();
    const ratio = scale / place.scale;
    place = {
      scale,
      x: centre.x - (centre.x - place.x) * ratio,
      y: centre.y - (centre.y - place.y) * ratio,
    };
    put();
  }

  function pan(dx, dy) {
    place = { ...place, x: place.x + dx, y: place.y + dy };
    put();
  }

  function onStage(event) {
    const { left, top } = stage.getBoundingClientRect();
    return { x: event.clientX - left, y: event.clientY - top };
  }

  stage.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoom(Math.exp(-event.deltaY / 400), onStage(event));
  }, { passive: false });
  stage.addEventListener("dblclick", (event) => zoom(2.5, onStage(event)));
  stage.addEventListener("pointerdown", (event) => {
    if (event.target.closest("button")) return;
    stage.setPointerCapture(event.pointerId);
    stage.classList.add("moving");
    pointers.set(event.pointerId, onStage(event));
  });
  stage.addEventListener("pointermove", (event) => {
    const before = pointers.get(event.pointerId);
    if (!before) return;
    const now = onStage(event);
    const other = [...pointers].find(([id]) => id !== event.pointerId)?.[1];
    if (other) {
      const apart = (point) => Math.hypot(point.x - other.x, point.y - other.y);
      zoom(apart(now) / Math.max(apart(before), 1), { x: (now.x + other.x) / 2, y: (now.y + other.y) / 2 });
    } else {
      pan(now.x - before.x, now.y - before.y);
    }
    pointers.set(event.pointerId, now);
  });
  for (const end of ["pointerup", "pointercancel"]) {
    stage.addEventListener(end, (event) => {
      pointers.delete(event.pointerId);
      stage.classList.toggle("moving", pointers.size > 0);
    });
  }

  const keys = {
    ArrowLeft: () => step(-1),
    ArrowRight: () => step(1),
    "+": () => zoom(1.5),
    "=": () => zoom(1.5),
    "-": () => zoom(1 / 1.5),
    0: fit,
  };
  dialog.addEventListener("keydown", (event) => {
    const isField = event.target.matches("input");
    if (event.ctrlKey || event.metaKey || event.altKey || !keys[event.key]) return;
    if (isField && event.target.type === "range" && event.key.startsWith("Arrow")) return;
    event.preventDefault();
    keys[event.key]();
  });
  const buttons = {
    previous: () => step(-1),
    next: () => step(1),
    close: () => dialog.close(),
    "zoom-in": () => zoom(1.5),
    "zoom-out": () => zoom(1 / 1.5),
    "zoom-fit": fit,
  };
  for (const [id, act] of Object.entries(buttons)) document.getElementById(id).addEventListener("click", act);
  dialog.addEventListener("close", () => closed(shown));
  window.addEventListener("resize", () => dialog.open && fit());

  return { open, refresh };
}
