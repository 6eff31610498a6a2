// The page: thresholds in, figures, order and boxes out. All from the data in this file; names and
// labels only ever become text nodes, never markup.
"use strict";

(() => {
  const $ = (id) => document.getElementById(id);
  const data = JSON.parse($("data").textContent);
  const images = data.images;
  const LOGIT_LIMIT = 6.9; // the slider reaches from 0.001 to 0.999, and its ends to 0 and 1
  const FIRST_SHOWN = { missed: 48, alarms: 48, found: 24, passed: 24, called: 48 };
  const MORE_SHOWN = 96;
  const Z = 1.959964; // of a 95 % interval

  const state = {
    threshold: data.threshold,
    stop: data.stop,
    costEscape: 20,
    costOverkill: 1,
    heat: 0.5,
    showBoxes: true,
    showOutline: false,
    type: "",
    order: "risk",
    query: "",
  };

  // --- Numbers ----------------------------------------------------------------------------------

  const logit = (p) => Math.log(p / (1 - p));
  const clampedLogit = (p) => Math.min(LOGIT_LIMIT, Math.max(-LOGIT_LIMIT, logit(p)));
  const isDefect = (image) => data.labelled && data.defective[image.type];
  const isCalled = (image) => image.p >= state.threshold;
  const plural = (n, one) => `${n} ${one}${n === 1 ? "" : "s"}`;
  const colour = (index) => `var(--t${index % 8})`;

  // Never rounded to nothing or to all where it is neither: a recall of 100 % would hide an escape.
  function percent(share) {
    if (share > 0 && share < 0.0005) return "<0.1 %";
    if (share < 1 && share >= 0.9995) return ">99.9 %";
    const isNearAnEnd = (share > 0 && share < 0.1) || (share > 0.99 && share < 1);
    return `${(100 * share).toFixed(isNearAnEnd ? 1 : 0)} %`;
  }

  // A probability with as many digits as its distance from 0 or 1 needs.
  function shortProbability(p) {
    return p < 0.5 ? Number(p.toPrecision(3)) : Number((1 - Number((1 - p).toPrecision(3))).toFixed(9));
  }

  function shownProbability(p) {
    if (p > 0 && p < 0.001) return "<0.001";
    if (p > 0.999 && p < 1) return ">0.999";
    return p.toFixed(3);
  }

  // Wilson's interval, which holds for few images too.
  function interval(k, n) {
    const share = k / n;
    const middle = (share + (Z * Z) / (2 * n)) / (1 + (Z * Z) / n);
    const half = (Z / (1 + (Z * Z) / n)) * Math.sqrt((share * (1 - share)) / n + (Z * Z) / (4 * n * n));
    return `${Math.round(100 * Math.max(0, middle - half))}–${Math.round(100 * Math.min(1, middle + half))} %`;
  }

  const n = { images: images.length, defective: images.filter(isDefect).length };
  n.good = n.images - n.defective;
  // Defective and good images' probabilities, ascending, to count above any threshold.
  const ascending = (chosen) => chosen.map((image) => image.p).sort((a, b) => a - b);
  const probabilities = {
    defective: ascending(images.filter(isDefect)),
    good: ascending(images.filter((image) => !isDefect(image))),
  };

  function countBelow(sorted, threshold) {
    let [low, high] = [0, sorted.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (sorted[middle] < threshold) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  function countsAt(threshold) {
    const missed = countBelow(probabilities.defective, threshold);
    const passed = countBelow(probabilities.good, threshold);
    return { missed, passed, found: n.defective - missed, alarms: n.good - passed };
  }

  const costOf = (counts) => counts.missed * state.costEscape + counts.alarms * state.costOverkill;

  // --- Groups and order -------------------------------------------------------------------------

  const GROUPS = data.labelled
    ? [
        ["missed", "Missed defects", n.defective ? "None: every defect is found at this threshold." : "None: no image here is labelled defective.", (i) => isDefect(i) && !isCalled(i)],
        ["alarms", "False alarms", n.good ? "None: every good part passes at this threshold." : "None: no image here is labelled good.", (i) => !isDefect(i) && isCalled(i)],
        ["found", "Defects found", "None.", (i) => isDefect(i) && isCalled(i)],
        ["passed", "Good parts passed", "None.", (i) => !isDefect(i) && !isCalled(i)],
      ]
    : [
        ["called", "Called defective", "None at this threshold.", isCalled],
        ["passed", "Called good", "None at this threshold.", (i) => !isCalled(i)],
      ];
  const DESCENDING = new Set(["alarms", "passed", "called"]); // the most doubtful first
  const byProbability = images.map((_, id) => id).sort((a, b) => images[a].p - images[b].p || a - b);
  const ORDERS = {
    risk: byProbability,
    peak: images.map((_, id) => id).sort((a, b) => images[b].peak - images[a].peak || a - b),
    name: images.map((_, id) => id).sort((a, b) => images[a].name.localeCompare(images[b].name, "en", { numeric: true })),
  };
  const groups = new Map(GROUPS.map(([key]) => [key, { ids: [], limit: FIRST_SHOWN[key] }]));

  function sortIntoGroups() {
    const query = state.query.trim().toLowerCase();
    const chosen = ORDERS[state.order].filter((id) =>
      (state.type === "" || images[id].type === Number(state.type)) &&
      (query === "" || images[id].name.toLowerCase().includes(query)));
    for (const [key, , , belongs] of GROUPS) {
      const ids = chosen.filter((id) => belongs(images[id]));
      groups.get(key).ids = state.order === "risk" && DESCENDING.has(key) ? ids.reverse() : ids;
    }
  }

  const allInOrder = () => [...groups.values()].flatMap(({ ids }) => ids);

  // --- Pictures, heatmaps, boxes ----------------------------------------------------------------

  const lookup = Uint8Array.from(atob(data.colours), (character) => character.charCodeAt(0));
  const embedded = (kind, id, type) => `data:image/${type};base64,${$(`${kind}-${id}`).textContent}`;

  // Colour and opacity of an 8-bit map, as the library's own overlays have them: the limit in the
  // middle of the colours, full opacity from the limit on.
  async function paintMap(canvas, source, opacity = (level) => Math.min(1, level / 127.5)) {
    const grey = new Image();
    grey.src = source;
    await grey.decode();
    canvas.width = grey.naturalWidth;
    canvas.height = grey.naturalHeight;
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(grey, 0, 0);
    const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
    for (let at = 0; at < pixels.data.length; at += 4) {
      const level = pixels.data[at];
      pixels.data.set(lookup.subarray(3 * level, 3 * level + 3), at);
      pixels.data[at + 3] = Math.round(255 * opacity(level));
    }
    context.putImageData(pixels, 0, 0);
  }

  function paintLegend(canvas, opacity) {
    const context = canvas.getContext("2d");
    for (let level = 0; level < 256; level += 1) {
      const [r, g, b] = lookup.subarray(3 * level, 3 * level + 3);
      context.fillStyle = `rgb(${r} ${g} ${b} / ${opacity(level)})`;
      context.fillRect(level, 0, 1, 1);
    }
  }

  const NO_BOXES = [];
  function boxesOf(image) {
    if (!isCalled(image)) return NO_BOXES;
    return image.boxes.findLast(([from]) => from <= state.stop)[1];
  }

  function labelsOf(image) {
    return state.stop === data.stop ? image.labels : [];
  }

  function makeView(image) {
    const view = document.createElement("div");
    view.className = "view pending"; // on paper, a part without its heatmap would look good
    view.style.setProperty("--aspect", image.w / image.h);
    const picture = document.createElement("img");
    picture.alt = "";
    const heat = document.createElement("canvas");
    const boxes = charts.node("svg", { viewBox: `0 0 ${image.w} ${image.h}`, class: "layer-boxes", "aria-hidden": true });
    view.append(picture, heat, boxes);
    if (image.outline.length) {
      const drawn = charts.node("svg", { viewBox: `0 0 ${image.w} ${image.h}`, class: "layer-outline", "aria-hidden": true });
      for (const kind of ["outline-halo", "outline"]) {
        for (const points of image.outline) drawn.append(charts.node("polygon", { class: kind, points: points.join(" ") }));
      }
      view.append(drawn);
    }
    return { view, picture, heat, boxes };
  }

  async function loadView({ view, picture, heat }, id) {
    picture.src = embedded("picture", id, "webp");
    await Promise.all([picture.decode(), paintMap(heat, embedded("map", id, "png"))]);
    view.classList.remove("pending");
  }

  function drawBoxes(layer, image, withText = false) {
    const marks = [];
    for (const kind of ["halo", "box"]) {
      for (const [left, top, right, bottom] of boxesOf(image)) {
        marks.push(charts.node("rect", { class: kind, x: left, y: top, width: right - left, height: bottom - top }));
      }
    }
    if (withText) {
      boxesOf(image).forEach(([left, top, right, bottom, score], at) => {
        const above = top > image.h * 0.04;
        const label = [labelsOf(image)[at], score.toPrecision(2)].filter(Boolean).join(" ");
        // It runs towards the middle, where there is room for it.
        const leftwards = left + right > image.w;
        marks.push(charts.node("text", {
          x: leftwards ? right : left, y: above ? top : bottom, dy: above ? "-0.4em" : "1.1em",
          "text-anchor": leftwards ? "end" : "start",
        }, label));
      });
    }
    layer.replaceChildren(...marks);
  }

  // --- Cards ------------------------------------------------------------------------------------

  const cards = new Map();
  let opener = null; // the card that the viewer was opened from
  const visible = new Set();
  const cardOf = new WeakMap();
  const watcher = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      const card = cardOf.get(target);
      if (!isIntersecting) visible.delete(card);
      else {
        visible.add(card);
        load(card);
        redraw(card);
      }
    }
  }, { rootMargin: "600px" });

  function load(card) {
    card.loaded ??= loadView(card.view, card.id);
    return card.loaded;
  }

  // What a card shows depends on these; it is drawn again only when they have changed.
  function redraw(card) {
    const image = images[card.id];
    const drawn = { called: isCalled(image), boxes: boxesOf(image) };
    if (card.drawn?.called === drawn.called && card.drawn.boxes === drawn.boxes) return;
    card.drawn = drawn;
    drawBoxes(card.view.boxes, image);
    describeCard(card, image);
  }

  function span(content, kind = "", title = "") {
    const made = document.createElement("span");
    made.className = kind;
    made.textContent = content;
    if (title) made.title = title;
    return made;
  }

  function verdictOf(image) {
    const called = isCalled(image) ? data.labels[image.called] : data.good;
    if (!data.labelled) return { text: called, wrong: false };
    const type = data.types[image.type];
    return called === type
      ? { text: type, wrong: false }
      : { text: `${type} → ${called}`, wrong: isCalled(image) !== isDefect(image) };
  }

  function describeCard(card, image) {
    const { text, wrong } = verdictOf(image);
    const boxes = boxesOf(image).length;
    card.verdict.textContent = text;
    card.verdict.title = text;
    card.verdict.className = wrong ? "wrong" : "";
    card.boxes.textContent = boxes ? plural(boxes, "box").replace(/xs$/, "xes") : "no box";
  }

  function makeCard(id) {
    const image = images[id];
    const view = makeView(image);
    const element = document.createElement("button");
    element.type = "button";
    element.className = "card";
    element.dataset.image = id;
    const tile = document.createElement("div");
    tile.className = "tile";
    tile.append(view.view);
    const caption = document.createElement("div");
    caption.className = "caption";
    const rows = [document.createElement("div"), document.createElement("div")];
    for (const row of rows) row.className = "row";
    const verdict = span("");
    const boxes = span("");
    const probability = span(shownProbability(image.p), "probability", `probability of a defect: ${image.p}`);
    rows[0].append(verdict, span("probability of a defect", "hidden"), probability);
    rows[1].append(boxes);
    if (image.unfamiliar) rows[1].append(span("unfamiliar", "flag"));
    caption.append(span(image.name, "name", image.name), ...rows);
    element.append(tile, caption);
    const card = { id, element, view, verdict, boxes };
    describeCard(card, image);
    element.addEventListener("click", () => {
      opener = card;
      viewer.open(id);
    });
    cardOf.set(element, card);
    watcher.observe(element);
    return card;
  }

  function cardFor(id) {
    if (!cards.has(id)) cards.set(id, makeCard(id));
    return cards.get(id);
  }

  function makeGroups() {
    for (const [key, title] of GROUPS) {
      const section = document.createElement("section");
      section.className = `group ${key === "missed" || key === "alarms" ? "wrong" : ""}`;
      section.id = `group-${key}`;
      const heading = document.createElement("h3");
      const count = span("");
      heading.append(title, count);
      const empty = document.createElement("p");
      empty.className = "empty";
      const grid = document.createElement("div");
      grid.className = "cards";
      const more = document.createElement("div");
      more.className = "more";
      const button = document.createElement("button");
      button.type = "button";
      button.addEventListener("click", () => {
        groups.get(key).limit += MORE_SHOWN;
        update();
      });
      more.append(button);
      section.append(heading, empty, grid, more);
      $("groups").append(section);
      Object.assign(groups.get(key), { count, empty, grid, more, button });
    }
  }

  // Put the cards of a group into its grid; of those that are there, only what moved is moved.
  function showGroup(key, emptyText) {
    const { ids, limit, count, empty, grid, more, button } = groups.get(key);
    const wanted = ids.slice(0, limit).map((id) => cardFor(id).element);
    const stay = new Set(wanted);
    for (const child of [...grid.children]) if (!stay.has(child)) child.remove();
    wanted.forEach((element, at) => {
      if (grid.children[at] !== element) grid.insertBefore(element, grid.children[at] ?? null);
    });
    count.textContent = ids.length;
    empty.textContent = state.query || state.type ? "None among those chosen." : emptyText;
    empty.hidden = ids.length > 0;
    more.hidden = ids.length <= limit;
    button.textContent = `Show ${Math.min(MORE_SHOWN, ids.length - limit)} more of ${ids.length}`;
  }

  // --- Figures that follow the thresholds -------------------------------------------------------

  function figure(value, name, ...remarks) {
    const made = document.createElement("div");
    const number = document.createElement("b");
    number.textContent = value;
    made.append(span(name, "name"), number, ...remarks.map((remark) => span(remark)));
    return made;
  }

  function showFigures() {
    const counts = countsAt(state.threshold);
    const called = counts.found + counts.alarms;
    if (!data.labelled) {
      $("verdict").replaceChildren(
        figure(String(called), "Called defective", `of ${n.images}`),
        figure(percent(called / n.images), "Share", "of all images"),
      );
      $("dock-verdict").textContent = `${called} of ${n.images} called defective`;
      return;
    }
    const rate = (name, part, whole, remark) => whole
      ? figure(percent(part / whole), name, remark, `95 % CI ${interval(part, whole)}`)
      : figure("–", name, remark);
    $("verdict").replaceChildren(
      rate("Recall", counts.found, n.defective, `${counts.found} of ${n.defective} found`),
      rate("Overkill", counts.alarms, n.good, `${counts.alarms} of ${n.good} rejected`),
    );
    for (const cell of document.querySelectorAll("[data-count]")) {
      cell.textContent = counts[cell.dataset.count];
      cell.toggleAttribute("data-zero", counts[cell.dataset.count] === 0);
    }
    $("cost").textContent = Number(costOf(counts).toPrecision(6));
    $("dock-verdict").textContent =
      `${counts.found} of ${n.defective} defects found · ${counts.alarms} of ${n.good} good rejected`;
  }

  function showTypes() {
    const columns = [data.good, ...data.labels];
    const head = document.createElement("tr");
    const corner = document.createElement("td");
    head.append(corner, ...[...columns.map((label) => `called ${label}`), "called defective"].map((name) => {
      const cell = document.createElement("th");
      cell.scope = "col";
      cell.textContent = name;
      return cell;
    }));
    const rows = data.types.map((type, index) => {
      const of = images.filter((image) => image.type === index);
      const called = of.filter(isCalled);
      const row = document.createElement("tr");
      const name = document.createElement("th");
      name.scope = "row";
      name.textContent = type;
      row.append(name);
      columns.forEach((label, column) => {
        const count = column === 0
          ? of.length - called.length
          : called.filter((image) => image.called === column - 1).length;
        const isRight = data.defective[index] ? label === type || (column > 0 && !data.labels.includes(type)) : column === 0;
        const cell = document.createElement("td");
        cell.textContent = count;
        cell.className = count === 0 ? "zero" : isRight ? "right" : "error";
        row.append(cell);
      });
      const share = document.createElement("td");
      share.textContent = of.length ? percent(called.length / of.length) : "–";
      row.append(share);
      return row;
    });
    const [thead, tbody] = [document.createElement("thead"), document.createElement("tbody")];
    thead.append(head);
    tbody.append(...rows);
    $("types").replaceChildren(thead, tbody);
  }

  function showLines() {
    const box = data.stops[state.stop];
    $("line-python").textContent = `clf.threshold_ = ${state.threshold}; clf.set_params(box_threshold=${box})`;
    $("line-cli").textContent =
      `defectcam localize ${data.model} IMAGES -o found --threshold ${state.threshold} --box-threshold ${box}`;
  }

  // --- Charts -----------------------------------------------------------------------------------

  const followers = []; // what moves with the threshold
  const shareAxis = (label) => ({ domain: [0, 1], ticks: [0, 0.25, 0.5, 0.75, 1], label, format: (v) => `${100 * v}` });
  const oddsAxis = (label) => ({
    domain: [1 / 1000, 999 / 1000],
    scale: clampedLogit,
    ticks: [0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999],
    label,
    format: (p) => String(p).replace(/^0/, ""),
  });
  const plotOf = (name) => $(`chart-${name}`).querySelector(".plot");
  const noteOf = (name, text) => { $(`chart-${name}`).querySelector(".note").textContent = text; };
  const follow = (plot, marks) => followers.push(() => plot.marks.replaceChildren(...marks()));
  const thresholdLines = (plot) => () =>
    charts.verticals(plot, [data.threshold, "own"], [state.threshold, "now"]);

  function drawHistogram(place, label, size, groupsOfBars) {
    const N_BINS = 40;
    const stacks = Array.from({ length: N_BINS }, () => groupsOfBars.map(({ colour: fill }) => [fill, 0]));
    groupsOfBars.forEach(({ chosen }, group) => {
      for (const image of chosen) {
        const share = (clampedLogit(image.p) + LOGIT_LIMIT) / (2 * LOGIT_LIMIT);
        stacks[Math.min(N_BINS - 1, Math.floor(share * N_BINS))][group][1] += 1;
      }
    });
    const most = Math.max(...stacks.map((stack) => stack.reduce((sum, [, count]) => sum + count, 0)));
    const plot = charts.axes(place, label, {
      ...size,
      x: oddsAxis(size.label),
      y: { domain: [0, most * 1.05], ticks: size.yTicks ? charts.niceTicks(most).filter(Number.isInteger) : [], label: size.yTicks ? "images" : "" },
    });
    const edges = Array.from({ length: N_BINS + 1 }, (_, i) => plot.left + ((plot.right - plot.left) * i) / N_BINS);
    charts.bars(plot, edges, stacks);
    follow(plot, thresholdLines(plot));
    return plot;
  }

  function drawScores() {
    const classes = data.labelled
      ? [{ colour: "var(--t0)", chosen: images.filter((i) => !isDefect(i)) }, { colour: "var(--t1)", chosen: images.filter(isDefect) }]
      : [{ colour: "var(--t0)", chosen: images }];
    const legend = data.labelled ? ", good images blue, defective ones orange" : "";
    drawHistogram($("histogram"), `Histogram of the probability of a defect${legend}`, {
      width: 300, height: 96, margin: { left: 8, right: 8, top: 4, bottom: 22 },
    }, classes);
    const types = data.labelled
      ? data.types.map((type, index) => ({ name: type, colour: colour(index), chosen: images.filter((i) => i.type === index) }))
      : [{ name: "all", colour: colour(0), chosen: images }];
    const key = charts.layKey(data.labelled ? types.map(({ name, colour: fill }) => [name, fill]) : []);
    const plot = drawHistogram(plotOf("scores"), "Histogram of the probability of a defect by type", {
      label: "probability of a defect, log-odds scale", yTicks: true,
      height: 212 + key.height, margin: { top: key.height },
    }, types);
    charts.key(plot, key);
    noteOf("scores", "Solid line: the threshold. Dotted: the model's own.");
  }

  let rates = null;
  function drawRates() {
    if (!rates) {
      const plot = charts.axes(plotOf("rates"), "Recall, overkill and cost against the threshold", {
        x: oddsAxis("decision threshold, log-odds scale"), y: shareAxis("percent"), margin: { top: 24 },
      });
      charts.key(plot, charts.layKey([["recall", colour(1)], ["overkill", colour(0)], ["cost, of its highest", colour(7)]]));
      const steps = Array.from({ length: 201 }, (_, i) => 1 / (1 + Math.exp(LOGIT_LIMIT * (1 - i / 100))));
      const counts = steps.map(countsAt);
      charts.line(plot, steps.map((p, i) => [p, counts[i].found / n.defective]), { style: `stroke:${colour(1)}` });
      charts.line(plot, steps.map((p, i) => [p, counts[i].alarms / n.good]), { style: `stroke:${colour(0)}` });
      follow(plot, thresholdLines(plot));
      rates = { plot, steps, counts, cost: null };
    }
    rates.cost?.remove();
    const costs = rates.counts.map(costOf);
    const highest = Math.max(...costs) || 1;
    rates.cost = charts.line(rates.plot, rates.steps.map((p, i) => [p, costs[i] / highest]),
      { style: `stroke:${colour(7)};stroke-width:1.5` });
  }

  function area(points) {
    let sum = 0;
    for (let i = 1; i < points.length; i += 1) {
      sum += ((points[i][0] - points[i - 1][0]) * (points[i][1] + points[i - 1][1])) / 2;
    }
    return sum;
  }

  function drawCurves() {
    const { roc, pr, calibration } = data.curves;
    const size = { height: 250 };
    let plot = charts.axes(plotOf("roc"), `ROC curve, area ${area(roc).toFixed(3)}`, {
      ...size, x: shareAxis("overkill, % of good images"), y: shareAxis("recall, % of defective images"),
    });
    charts.line(plot, [[0, 0], [1, 1]], { class: "ideal" });
    charts.line(plot, roc);
    const rocPlot = plot;
    follow(rocPlot, () => {
      const counts = countsAt(state.threshold);
      return [charts.dot(rocPlot, counts.alarms / n.good, counts.found / n.defective)];
    });
    noteOf("roc", `Area under the curve: ${area(roc).toFixed(3)}. The circle is the threshold.`);

    plot = charts.axes(plotOf("pr"), "Precision against recall", {
      ...size, x: shareAxis("recall, % of defective images"), y: shareAxis("precision, % of those called defective"),
    });
    charts.line(plot, pr);
    const prPlot = plot;
    follow(prPlot, () => {
      const { found, alarms } = countsAt(state.threshold);
      return found + alarms ? [charts.dot(prPlot, found / n.defective, found / (found + alarms))] : [];
    });
    noteOf("pr", "Precision holds for the share of defects among these images.");

    plot = charts.axes(plotOf("calibration"), "Share of defective images against their probability", {
      ...size, x: shareAxis("mean probability, %"), y: shareAxis("share of defects, %"),
    });
    charts.line(plot, [[0, 0], [1, 1]], { class: "ideal" });
    charts.line(plot, calibration);
    for (const [x, y, count] of calibration) {
      const mark = charts.node("circle", {
        cx: plot.sx(x), cy: plot.sy(y), r: 2 + 6 * Math.sqrt(count / n.images), style: `fill:${colour(0)}`,
      }, charts.node("title", {}, plural(count, "image")));
      plot.root.append(mark);
    }
    noteOf("calibration", "Ten bins; the area of a dot grows with its images. On the dashed line, probabilities are right.");
  }

  function drawHistory() {
    const has = data.history.some(({ loss }) => loss.length > 0);
    for (const [name, key] of [["loss", "loss"], ["accuracy", "accuracy"]]) {
      if (!has) {
        noteOf(name, "Nothing was trained: the model rests on good images alone.");
        continue;
      }
      const longest = Math.max(...data.history.map((fold) => fold[key].length));
      const high = key === "loss" ? Math.max(...data.history.flatMap((fold) => fold.loss)) : 1;
      const plot = charts.axes(plotOf(name), `Training ${name} by epoch`, {
        x: { domain: [1, Math.max(2, longest)], ticks: charts.niceTicks(longest).filter((v) => v >= 1 && Number.isInteger(v)), label: "epoch" },
        y: key === "loss" ? { domain: [0, high * 1.05], ticks: charts.niceTicks(high), label: "loss" } : shareAxis("percent"),
      });
      data.history.toReversed().forEach((fold) => {
        const isFinal = fold.fold === 0;
        const style = `stroke:${isFinal ? colour(0) : colour(7)};stroke-width:${isFinal ? 2.25 : 1.25}`;
        if (fold[key].length > 1) charts.line(plot, fold[key].map((value, at) => [at + 1, value]), { style });
        else plot.root.append(charts.node("circle", { cx: plot.sx(1), cy: plot.sy(fold[key][0]), r: 3, style: `fill:${isFinal ? colour(0) : colour(7)}` }));
      });
      noteOf(name, data.history.length > 1 ? "Blue: the final network. Grey: those that held-out scores come from." : "");
    }
  }

  // --- Averages and doubts ----------------------------------------------------------------------

  function drawAverages() {
    const { top, aspect, picture, groups: means } = data.averages;
    const view = document.createElement("div");
    view.className = "view";
    view.style.setProperty("--aspect", aspect);
    const mean = document.createElement("img");
    mean.alt = "";
    mean.src = `data:image/webp;base64,${picture}`;
    const canvas = document.createElement("canvas");
    canvas.setAttribute("role", "img");
    view.append(mean, canvas);
    $("mean").append(view);
    const opacity = (level) => 0.9 * Math.min(1, level / 127.5);
    paintLegend($("mean-legend"), opacity);
    $("mean-top").textContent = `${top.toFixed(2)} of the limit`;
    const order = means.map((_, at) => at);
    for (const at of order) {
      const option = document.createElement("option");
      option.value = at;
      option.textContent = means[at].name;
      $("mean-group").append(option);
    }
    const show = () => {
      const { name, n: count, map } = means[Number($("mean-group").value)];
      canvas.setAttribute("aria-label", `Mean heatmap of ${name}`);
      $("mean-note").textContent = `${plural(count, "image")}, over the mean picture of all. One scale for every choice.`;
      return paintMap(canvas, `data:image/png;base64,${map}`, opacity);
    };
    const counted = order.filter((at) => means[at].defective);
    $("mean-group").value = counted.sort((a, b) => means[b].n - means[a].n)[0] ?? order[0];
    $("mean-group").addEventListener("change", show);
    show();
  }

  const doubtCards = [];
  function drawDoubts() {
    const put = (place, ids) => {
      const made = ids.map(makeCard);
      doubtCards.push(...made);
      place.append(...made.map((card) => card.element));
    };
    if (data.labelled) put($("suspects"), data.suspects);
    put($("unfamiliar"), images.map((_, id) => id).filter((id) => images[id].unfamiliar));
  }

  // --- The viewer -------------------------------------------------------------------------------

  let large = null;

  function drawLarge(id, place) {
    large = makeView(images[id]);
    place.replaceChildren(large.view);
    loadView(large, id);
    return { w: images[id].w, h: images[id].h };
  }

  function describeLarge(id) {
    const image = images[id];
    drawBoxes(large.boxes, image, true);
    const { text, wrong } = verdictOf(image);
    $("viewer-name").textContent = image.name;
    $("viewer-verdict").replaceChildren(span(text, `tag ${wrong ? "wrong" : ""}`),
      span(`: called ${isCalled(image) ? "defective" : "good"}${image.unfamiliar ? ", unfamiliar" : ""}`));
    const facts = [
      ["Probability of a defect", image.p < 1e-4 || image.p > 1 - 1e-4 ? String(image.p) : image.p.toFixed(4)],
      ["Defective from", String(state.threshold)],
      ["Highest heat", `${image.peak.toFixed(2)} × limit`],
      ["Box threshold", String(data.stops[state.stop])],
      ["Width × height", `${image.w} × ${image.h}`],
    ];
    $("viewer-facts").replaceChildren(...facts.map(([name, value]) => {
      const row = document.createElement("div");
      const [term, definition] = [document.createElement("dt"), document.createElement("dd")];
      term.textContent = name;
      definition.textContent = value;
      row.append(term, definition);
      return row;
    }));
    $("viewer-boxes").replaceChildren(boxTable(image));
  }

  function boxTable(image) {
    const boxes = boxesOf(image);
    if (!boxes.length) {
      return span(isCalled(image) ? "None above the box threshold." : "None: the image is called good.", "note");
    }
    const labels = labelsOf(image);
    const table = document.createElement("table");
    const head = table.createTHead().insertRow();
    for (const name of ["left", "top", "right", "bottom", "score", ...(labels.length ? ["type"] : [])]) {
      const cell = document.createElement("th");
      cell.scope = "col";
      cell.textContent = name;
      head.append(cell);
    }
    const body = table.createTBody();
    boxes.forEach((box, at) => {
      const row = body.insertRow();
      for (const value of labels.length ? [...box, labels[at]] : box) row.insertCell().textContent = value;
    });
    return table;
  }

  const viewer = makeViewer({
    order: allInOrder,
    draw: drawLarge,
    describe: describeLarge,
    closed: (id) => {
      const card = (opener?.id === id ? opener : cards.get(id))?.element;
      if (!card?.isConnected) return;
      card.scrollIntoView({ block: "nearest" });
      card.focus();
    },
  });

  // --- Controls ---------------------------------------------------------------------------------

  const sliderValue = () => (state.threshold <= 0 ? -LOGIT_LIMIT : state.threshold >= 1 ? LOGIT_LIMIT : clampedLogit(state.threshold));
  const bindings = {
    threshold: [() => state.threshold, (text) => { state.threshold = Math.min(1, Math.max(0, Number(text))); }],
    "threshold-slider": [sliderValue, (text) => {
      const odds = Number(text);
      if (odds <= -LOGIT_LIMIT) state.threshold = 0;
      else if (odds >= LOGIT_LIMIT) state.threshold = 1;
      else state.threshold = shortProbability(1 / (1 + Math.exp(-odds)));
    }],
  };
  for (const key of ["stop", "heat", "costEscape", "costOverkill"]) {
    bindings[key] = [() => state[key], (text) => { state[key] = Number(text); }];
  }
  for (const key of ["type", "order", "query"]) bindings[key] = [() => state[key], (text) => { state[key] = text; }];
  for (const key of ["showBoxes", "showOutline"]) bindings[key] = [() => state[key], (on) => { state[key] = on; }];

  const inputs = [...document.querySelectorAll("[data-bind]")];
  for (const input of inputs) {
    if (input.dataset.bind === "threshold-slider") Object.assign(input, { min: -LOGIT_LIMIT, max: LOGIT_LIMIT });
    if (input.dataset.bind === "stop") input.max = data.stops.length - 1;
    input.addEventListener("input", () => {
      const isEmptyNumber = input.type === "number" && (input.value === "" || !(Number(input.value) >= 0));
      if (isEmptyNumber) return; // while it is being typed
      bindings[input.dataset.bind][1](input.type === "checkbox" ? input.checked : input.value);
      schedule(input);
    });
    input.addEventListener("change", () => showInputs()); // what was typed may not be what counts
  }

  function showInputs(origin) {
    for (const input of inputs) {
      const value = bindings[input.dataset.bind][0]();
      if (input.type === "checkbox") input.checked = value;
      else if (input !== origin && input.value !== String(value)) input.value = value;
      if (input.dataset.bind === "threshold-slider") input.setAttribute("aria-valuetext", `probability ${state.threshold}`);
      if (input.dataset.bind === "stop") input.setAttribute("aria-valuetext", `${data.stops[state.stop]}`);
    }
    $("stop-value").textContent = data.stops[state.stop];
    $("dock-value").textContent = `probability ≥ ${state.threshold}`;
    document.documentElement.style.setProperty("--heat", state.heat);
    document.body.classList.toggle("boxes", state.showBoxes);
    document.body.classList.toggle("outlines", state.showOutline);
  }

  let pending = 0;
  let origin = null;
  function schedule(input = null) {
    origin = input;
    pending ||= requestAnimationFrame(() => {
      pending = 0;
      update(origin);
    });
  }

  let last = {};
  function update(input = null) {
    const changed = (...keys) => keys.some((key) => last[key] !== state[key]);
    showInputs(input);
    if (changed("threshold", "type", "order", "query") || input === null) {
      sortIntoGroups();
      for (const [key, , emptyText] of GROUPS) showGroup(key, emptyText);
    }
    if (changed("threshold", "costEscape", "costOverkill")) showFigures();
    if (changed("threshold") && data.labelled) showTypes();
    if (changed("costEscape", "costOverkill") && data.curves) drawRates();
    if (changed("threshold")) for (const move of followers) move();
    if (changed("threshold", "stop")) showLines();
    for (const card of visible) redraw(card);
    viewer.refresh();
    last = { ...state };
  }

  // The threshold with the lowest cost: between two neighbouring probabilities.
  function cheapest() {
    const all = [...new Set(byProbability.map((id) => images[id].p))];
    let best = { cost: Infinity, threshold: 1 };
    all.forEach((p, at) => {
      const cost = costOf(countsAt(p));
      const between = at === 0 ? p : (all[at - 1] + p) / 2;
      const short = shortProbability(between);
      const threshold = short > (all[at - 1] ?? -1) && short <= p ? short : p;
      if (cost < best.cost) best = { cost, threshold };
    });
    const none = costOf({ missed: n.defective, alarms: 0 });
    const highest = all.at(-1);
    return none < best.cost && highest < 1 ? (highest + 1) / 2 : best.threshold;
  }

  async function copyLines() {
    const text = `${$("line-python").textContent}\n${$("line-cli").textContent}`;
    try {
      await navigator.clipboard.writeText(text);
      $("copied").textContent = "Copied.";
    } catch {
      getSelection().selectAllChildren($("line-python").closest("section"));
      $("copied").textContent = "This browser does not let a file copy: the lines are selected, press Ctrl+C.";
    }
  }

  function stepFocus(event) {
    const card = event.target.closest?.(".card");
    if (!card || !event.key.startsWith("Arrow")) return false;
    const all = [...document.querySelectorAll("#groups .card")];
    const at = all.indexOf(card);
    if (at < 0) return false;
    const columns = getComputedStyle(card.parentElement).gridTemplateColumns.split(" ").length;
    const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
    const next = all[Math.min(all.length - 1, Math.max(0, at + by))];
    next.focus();
    next.scrollIntoView({ block: "nearest" });
    return true;
  }

  const toggles = { h: () => { state.heat = state.heat > 0 ? 0 : 0.5; }, b: () => { state.showBoxes = !state.showBoxes; } };
  if ($("show-outline")) toggles.m = () => { state.showOutline = !state.showOutline; };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.matches("select, input:not([type=range], [type=checkbox])")) return;
    const toggle = toggles[event.key.toLowerCase()];
    if (toggle) {
      toggle();
      schedule(); // with no origin: the slider that has the focus moves too
    }
    if (toggle || stepFocus(event)) event.preventDefault();
  });

  function setTheme(isDark) {
    document.documentElement.dataset.theme = isDark ? "dark" : "light";
    $("theme").setAttribute("aria-pressed", isDark);
  }

  $("copy").addEventListener("click", copyLines);
  $("reset").addEventListener("click", () => {
    Object.assign(state, { threshold: data.threshold, stop: data.stop });
    schedule();
  });
  $("cheapest")?.addEventListener("click", () => {
    state.threshold = cheapest();
    schedule();
  });
  const prefersDark = matchMedia("(prefers-color-scheme: dark)");
  setTheme(prefersDark.matches);
  prefersDark.addEventListener("change", (event) => setTheme(event.matches));
  $("theme").addEventListener("click", () => setTheme(document.documentElement.dataset.theme !== "dark"));
  const loadAll = () => Promise.all([...cards.values(), ...doubtCards].map((card) => { redraw(card); return load(card); }));
  async function printAll() {
    await loadAll();
    window.print();
  }
  window.addEventListener("beforeprint", loadAll); // which does not wait: see .pending
  $("print").addEventListener("click", printAll);
  document.addEventListener("keydown", (event) => {
    const isPrint = (event.ctrlKey || event.metaKey) && !event.altKey && !event.shiftKey && event.key === "p";
    if (!isPrint) return;
    event.preventDefault();
    printAll();
  });

  if ($("filter-type")) {
    data.types.forEach((type, index) => {
      const option = document.createElement("option");
      option.value = index;
      option.textContent = type;
      $("filter-type").append(option);
    });
  }
  paintLegend($("legend"), (level) => Math.min(1, level / 127.5));
  const aspect = Math.min(1.6, Math.max(0.7, data.averages.aspect));
  document.documentElement.style.setProperty("--tile-aspect", aspect);
  makeGroups();
  drawScores();
  if (data.curves) drawCurves();
  update();
  drawHistory();
  drawAverages();
  drawDoubts();
})();
