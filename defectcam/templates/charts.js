// Small charts as SVG: axes, lines, stacked bars, and marks that move with the threshold. Draws what
// it is given and knows nothing of images.
"use strict";

const charts = (() => {
  const SVG = "http://www.w3.org/2000/svg";
  const MARGIN = { left: 40, right: 12, top: 8, bottom: 36 };

  function node(tag, attributes = {}, ...children) {
    const made = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  }

  // A pair of axes. `x` and `y` are {domain, ticks, label, format}; `scale` defaults to the identity
  // and turns a value into what the axis is even in.
  function axes(place, label, { width = 330, height = 230, x, y, margin = {} }) {
    const room = { ...MARGIN, ...margin };
    const along = ({ domain, scale = (v) => v }, start, end) => {
      const [low, high] = domain.map(scale);
      return (value) => start + ((scale(value) - low) / (high - low || 1)) * (end - start);
    };
    const sx = along(x, room.left, width - room.right);
    const sy = along(y, height - room.bottom, room.top);
    const root = node("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
    const [left, right] = [room.left, width - room.right];
    const [top, bottom] = [room.top, height - room.bottom];
    for (const tick of y.ticks ?? []) {
      root.append(node("line", { class: "grid", x1: left, x2: right, y1: sy(tick), y2: sy(tick) }));
      root.append(text(left - 6, sy(tick) + 4, (y.format ?? String)(tick), "end"));
    }
    for (const tick of x.ticks ?? []) {
      root.append(node("line", { class: "grid", x1: sx(tick), x2: sx(tick), y1: bottom, y2: bottom + 4 }));
      root.append(text(sx(tick), bottom + 16, (x.format ?? String)(tick), "middle"));
    }
    root.append(node("line", { class: "axis", x1: left, x2: right, y1: bottom, y2: bottom }));
    if (x.label) root.append(text((left + right) / 2, height - 4, x.label, "middle"));
    if (y.label) {
      const turned = text(0, 0, y.label, "middle");
      turned.setAttribute("transform", `translate(11 ${(top + bottom) / 2}) rotate(-90)`);
      root.append(turned);
    }
    const marks = node("g");
    root.append(marks);
    place.replaceChildren(root);
    return { root, marks, sx, sy, left, right, top, bottom };
  }

  function text(x, y, content, anchor, kind = "") {
    return node("text", { x, y, "text-anchor": anchor, class: kind }, content);
  }

  function line(plot, points, attributes = {}) {
    const path = points.map(([x, y]) => `${plot.sx(x).toFixed(2)} ${plot.sy(y).toFixed(2)}`).join("L");
    const drawn = node("path", { class: "curve", d: `M${path}`, ...attributes });
    plot.root.insertBefore(drawn, plot.marks);
    return drawn;
  }

  // Bars from `edges` (pixels), each a stack of [colour, count] with all counts in `stacks[bin]`.
  function bars(plot, edges, stacks) {
    const layer = node("g");
    stacks.forEach((stack, bin) => {
      let base = 0;
      for (const [colour, count] of stack) {
        if (!count) continue;
        const [from, to] = [plot.sy(base), plot.sy(base + count)];
        layer.append(node("rect", {
          x: edges[bin] + 0.5, width: Math.max(0.5, edges[bin + 1] - edges[bin] - 1),
          y: to, height: from - to, fill: colour,
        }));
        base += count;
      }
    });
    plot.root.insertBefore(layer, plot.marks);
  }

  function verticals(plot, ...marks) {
    return marks.map(([x, kind]) =>
      node("line", { class: kind, x1: plot.sx(x), x2: plot.sx(x), y1: plot.top, y2: plot.bottom }));
  }

  function dot(plot, x, y) {
    return node("circle", { class: "dot", cx: plot.sx(x), cy: plot.sy(y), r: 4.5 });
  }

  // Names beside their colours, in one row that breaks where it must; `height` is what they take.
  function layKey(entries, left = MARGIN.left, width = 330) {
    let [x, y] = [left, 12];
    const spots = entries.map(([name, colour]) => {
      const shown = shortened(name, width - left - 18);
      const wide = 18 + widthOf(shown);
      if (x > left && x + wide > width) [x, y] = [left, y + 15];
      const spot = { name, shown, colour, x, y };
      x += wide + 8;
      return spot;
    });
    return { spots, height: y + 6 };
  }

  function key(plot, { spots }) {
    const layer = node("g");
    for (const { name, shown, colour, x, y } of spots) {
      layer.append(node("rect", { x, y: y - 8, width: 9, height: 9, rx: 2, fill: colour }));
      const written = text(x + 13, y, shown, "start", "key");
      if (shown !== name) written.append(node("title", {}, name));
      layer.append(written);
    }
    plot.root.append(layer);
  }

  const ruler = document.createElement("canvas").getContext("2d");

  // In the units of a chart.
  function widthOf(name) {
    ruler.font = "11px system-ui, sans-serif"; // as the style has it
    return ruler.measureText(name).width;
  }

  function shortened(name, most) {
    if (widthOf(name) <= most) return name;
    const letters = [...name];
    while (letters.length && widthOf(`${letters.join("")}…`) > most) letters.pop();
    return `${letters.join("")}…`;
  }

  function niceTicks(high, most = 4) {
    const rough = Math.max(high, 1e-9) / most;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].find((factor) => factor * power >= rough) * power;
    return Array.from({ length: Math.floor(high / step + 1e-9) + 1 }, (_, i) => Number((i * step).toPrecision(6)));
  }

  return { node, axes, line, bars, verticals, dot, layKey, key, niceTicks };
})();
