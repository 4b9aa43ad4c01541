(function () {
  "use strict";
  const data = JSON.parse(document.getElementById("data").textContent);
  const PAGE = 20, FEW = 12;
  const chosen = new Set();
  const listeners = [];
  const $ = (selector, root = document) => root.querySelector(selector);
  const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];

  function make(tag, attributes = {}, ...children) {
    const svg = ["svg", "path", "line", "circle"].includes(tag);
    const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name === "text") element.textContent = value;
      else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else if (value !== false && value != null) element.setAttribute(name, value === true ? "" : value);
    }
    element.append(...children.filter((child) => child != null));
    return element;
  }

  function format(value) {
    if (value == null || Number.isNaN(value)) return "-";
    if (Number.isInteger(value)) return value.toLocaleString("en");
    return Math.abs(value) >= 1e5 || Math.abs(value) < 1e-3 ? value.toExponential(2) : String(Number(value.toPrecision(3)));
  }

  function half(bits) {
    const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
    if (exponent === 31) return fraction ? NaN : sign * Infinity;
    return exponent ? sign * 2 ** (exponent - 15) * (1 + fraction / 1024) : sign * 2 ** -14 * (fraction / 1024);
  }

  function unpack(column) {
    const text = atob(column.data), bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    const buffer = bytes.buffer;
    switch (column.type) {
      case "u1": return bytes;
      case "i2": return new Int16Array(buffer);
      case "i4": return new Int32Array(buffer);
      case "f8": return new Float64Array(buffer);
      default: {
        const known = new Float32Array(65536).fill(-1), seen = new Uint8Array(65536);
        return Float32Array.from(new Uint16Array(buffer), (bits) => {
          if (!seen[bits]) { seen[bits] = 1; known[bits] = half(bits); }
          return known[bits];
        });
      }
    }
  }

  const runs = data.runs.map((run, index) => {
    const columns = {};
    for (const [name, column] of Object.entries(run.columns)) columns[name] = unpack(column);
    if (!columns.id) columns.id = Int32Array.from({ length: run.length }, (_, i) => i);
    const place = new Map();
    columns.id.forEach((id, row) => place.set(id, row));
    return { ...run, index, columns, place, views: {}, table: null };
  });

  const valueOf = (run, name, id) => (run.place.has(id) && run.columns[name] ? run.columns[name][run.place.get(id)] : null);

  function labelOf(run, name, id) {
    const value = valueOf(run, name, id);
    if (value == null || value === -1 || Number.isNaN(value)) return null;
    return run.classNames && run.classNames[value] !== undefined ? run.classNames[value] : format(value);
  }

  function look(id, big) {
    const picture = data.looks.pictures[id], text = data.looks.texts[id];
    if (picture) return make("img", { src: picture, alt: `sample ${id}`, class: big ? null : "thumb", decoding: "async" });
    return text ? (big ? make("blockquote", { text }) : make("span", { text: text.length > 60 ? text.slice(0, 59) + "…" : text })) : null;
  }

  function describe(run, id) {
    const lines = [["id", String(id)]];
    for (const [name, title] of [["given", "given"], ["suggested", "suggested"]]) {
      const label = labelOf(run, name, id);
      if (label !== null) lines.push([title, label]);
    }
    for (const [name, title] of COLUMNS.filter(([name]) => !["given", "suggested"].includes(name)))
      if (run.columns[name]) lines.push([title, format(valueOf(run, name, id))]);
    return lines;
  }

  const COLUMNS = [
    ["given", "given label"], ["suggested", "suggested"], ["suspicion", "suspicion"], ["mean", "mean loss"],
    ["spread", "spread"], ["last", "last loss"], ["times", "times trained"], ["forgotten", "forgotten"],
  ];

  // tooltip

  const tip = $("#tip");
  function tooltip(run) {
    return (view, event, item, value) => {
      if (value == null || value === "") { tip.hidden = true; return; }
      tip.replaceChildren();
      let lines = typeof value === "object" ? Object.entries(value) : [["", String(value)]];
      if (run && typeof value === "object" && Object.keys(value).length === 1 && "id" in value) {
        const id = Number(String(value.id).replace(/[^0-9]/g, ""));
        const seen = look(id, true);
        if (seen) tip.append(seen);
        lines = describe(run, id);
      } else if (typeof value !== "object" && run && item && item.datum && item.datum.id !== undefined) {
        const seen = look(item.datum.id, true);
        if (seen) tip.append(seen);
        lines = describe(run, item.datum.id);
      }
      for (const [name, text] of lines) tip.append(make("div", {}, make("span", { text: name }), make("span", { text })));
      tip.hidden = false;
      const box = tip.getBoundingClientRect();
      tip.style.left = Math.max(4, Math.min(event.clientX + 14, innerWidth - box.width - 8)) + "px";
      tip.style.top = (event.clientY + 14 + box.height > innerHeight ? event.clientY - box.height - 10 : event.clientY + 14) + "px";
    };
  }

  // charts

  const drawn = [];
  async function draw(element) {
    const run = runs[element.dataset.run], name = element.dataset.chart;
    const spec = run ? run.charts[name] : data.charts[name];
    if (!spec || element.dataset.done) return;
    element.dataset.done = "yes";
    const width = element.clientWidth;
    const start = { map: () => ["samples", points(run)], courses: () => ["chosen", standardCourses(run)] }[name];
    if (start) {
      const [table, values] = start();
      spec.data.find((source) => source.name === table).values = values;
    }
    const options = { mode: "vega", renderer: "svg", actions: false, defaultStyle: false, tooltip: tooltip(run) };
    const { view } = await vegaEmbed(element, spec, options);
    if (name === "map") prepareMap(run, view);
    if (name === "courses") prepareCourses(run, view);
    await view.width(width).runAsync();
    if (run) run.views[name] = view;
    drawn.push([element, view]);
  }

  const drawVisible = () => Promise.all($$(".chart").filter((element) => element.clientWidth).map(draw));

  let resizing = 0;
  addEventListener("resize", () => {
    clearTimeout(resizing);
    resizing = setTimeout(() => {
      for (const [element, view] of drawn) if (element.clientWidth) view.width(element.clientWidth).run();
    }, 120);
  });
  addEventListener("beforeprint", () => { for (const [element, view] of drawn) if (element.clientWidth) view.width(Math.min(element.clientWidth, 640)).run(); });
  addEventListener("afterprint", () => dispatchEvent(new Event("resize")));

  // map

  function points(run) {
    return run.drawn.map((id) => ({
      id, mean: valueOf(run, "mean", id), spread: valueOf(run, "spread", id), group: chosen.has(id) ? "chosen" : "sample",
    })).filter((point) => !Number.isNaN(point.mean));
  }

  function prepareMap(run, view) {
    let waiting = 0;
    const brushed = () => {
      cancelAnimationFrame(waiting);
      waiting = requestAnimationFrame(() => run.table.bound(view.signal("brush_mean"), view.signal("brush_spread")));
    };
    view.addSignalListener("brush_mean", brushed);
    view.addSignalListener("brush_spread", brushed);
    let before = "";
    listeners.push(() => {
      const now = run.drawn.filter((id) => chosen.has(id)).join();
      if (now === before) return;
      before = now;
      view.data("samples", points(run)).run();
    });
  }

  // trajectories

  function courseOf(run, id) {
    const losses = run.course.losses[id];
    if (!losses) return [];
    const first = run.epochs[0], last = run.epochs[run.epochs.length - 1];
    return losses.map((loss, slot) => ({ epoch: Math.min((slot + 1) * run.course.span - 1, last), loss }))
      .filter((point) => point.loss !== null && point.epoch >= first);
  }

  const coursesOf = (run, ids) => ids.flatMap((id) => courseOf(run, id).map((point) => ({ ...point, sample: String(id) })));

  function standardCourses(run) {
    const ids = ["hardest", "forgotten", "easiest"].flatMap((part) => (run.gallery[part] || []).slice(0, 2));
    return coursesOf(run, [...new Set(ids)]);
  }

  function prepareCourses(run, view) {
    const said = $(`#run${run.index} [data-role="courses-of"]`);
    const usual = said.textContent;
    listeners.push(() => {
      const own = [...chosen].filter((id) => run.course.losses[id]).slice(0, 8);
      said.textContent = own.length ? `${own.length} of ${chosen.size} chosen samples.` : usual;
      view.data("chosen", own.length ? coursesOf(run, own) : standardCourses(run)).run();
    });
  }

  function sparkline(run, id) {
    const line = courseOf(run, id);
    if (line.length < 2) return null;
    const end = Math.max(1, run.epochs[run.epochs.length - 1]), top = Math.max(...line.map((p) => p.loss)), low = Math.min(0, ...line.map((p) => p.loss));
    const x = (p) => (2 + (p.epoch / end) * 126).toFixed(1), y = (p) => (30 - ((p.loss - low) / (top - low || 1)) * 27).toFixed(1);
    const last = line[line.length - 1];
    return make("svg", { viewBox: "0 0 130 34", preserveAspectRatio: "none", role: "img", "aria-label": `loss from ${format(line[0].loss)} to ${format(last.loss)}` },
      make("line", { x1: 2, x2: 128, y1: 30.5, y2: 30.5 }),
      make("path", { d: "M" + line.map((p) => `${x(p)},${y(p)}`).join("L"), "vector-effect": "non-scaling-stroke" }),
      make("circle", { cx: x(last), cy: y(last), r: 2.2 }));
  }

  // choosing

  function choose(ids, on) {
    for (const id of ids) on ? chosen.add(id) : chosen.delete(id);
    for (const box of $$("input[data-sample]")) {
      box.checked = chosen.has(Number(box.dataset.sample));
      const card = box.closest(".card");
      if (card) card.classList.toggle("chosen", box.checked);
    }
    const bar = $("#chosen");
    bar.hidden = chosen.size === 0;
    $("span", bar).textContent = `${chosen.size} chosen`;
    for (const listener of listeners) listener();
  }

  function checkbox(id, name) {
    return make("input", { type: "checkbox", "data-sample": id, "aria-label": name || `choose sample ${id}`, checked: chosen.has(id), onchange: (event) => choose([id], event.target.checked) });
  }

  function shownRun() { return runs.find((run) => !$(`#run${run.index}`).hidden) || runs[0]; }

  function csv(run, ids, name) {
    const columns = COLUMNS.filter(([column]) => run.columns[column]);
    const quote = (text) => (/[",\n]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text);
    const cell = (column, id) => {
      const value = ["given", "suggested"].includes(column) ? labelOf(run, column, id) : valueOf(run, column, id);
      return value === null || Number.isNaN(value) ? "" : quote(typeof value === "number" ? String(Number(value.toPrecision(4))) : value);
    };
    const lines = [["id", ...columns.map(([column]) => column)].join(), ...[...ids].map((id) => [id, ...columns.map(([column]) => cell(column, id))].join())];
    const link = make("a", { href: URL.createObjectURL(new Blob([lines.join("\n") + "\n"], { type: "text/csv" })), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  // gallery

  function card(run, id, extra) {
    const given = labelOf(run, "given", id), suggested = labelOf(run, "suggested", id), mean = valueOf(run, "mean", id), times = valueOf(run, "times", id);
    const differs = suggested !== null && suggested !== given;
    const labels = given === null ? null : make("div", { class: "labels", title: differs ? `given ${given}, suggested ${suggested}` : given },
      make("span", { text: given }), differs ? make("span", { class: "to", text: ` → ${suggested}` }) : null);
    const body = extra || make("div", { class: "muted", text: `loss ${format(mean)}, trained ${format(times)}×` });
    return make("li", { class: "card" }, make("label", {}, make("span", { text: `#${id}` }), checkbox(id)), look(id, true), labels, body, sparkline(run, id));
  }

  function fillGallery(run) {
    for (const list of $$(`#run${run.index} [data-role="cards"]`)) {
      const ids = run.gallery[list.dataset.group];
      list.classList.toggle("texts", ids.some((id) => data.looks.texts[id]));
      list.append(...ids.map((id) => card(run, id)));
      if (ids.length <= FEW) continue;
      const rest = [...list.children].slice(FEW);
      for (const item of rest) item.classList.add("rest");
      const more = make("button", { class: "plain more", text: `Show all ${ids.length}`, onclick: () => {
        list.classList.add("all");
        more.remove();
        $("input", rest[0]).focus();
      } });
      list.after(more);
    }
    for (const button of $$(`#run${run.index} [data-role="choose"]`))
      button.addEventListener("click", () => choose(run.gallery[button.dataset.group], true));
  }

  function fillDisagreed() {
    const list = $("#disagreed"), comparison = data.comparison;
    if (!list || !comparison) return;
    if (!comparison.ids.length) list.append(make("li", { class: "muted", text: "None: they trained every sample equally often." }));
    list.append(...comparison.ids.map((id, k) => card(runs[0], id, make("div", {}, ...comparison.names.map((name, r) =>
      make("div", { title: name }, make("span", { class: "swatch", style: `background: var(--series-${(r % 8) + 1})` }), make("span", { text: `${Math.round(100 * comparison.shares[r][k])} %` })))))));
  }

  // table

  function makeTable(run) {
    const root = $(`#run${run.index} [data-part="map"]`), table = $('[data-role="table"]', root), filters = $('[data-role="filters"]', root);
    const columns = COLUMNS.filter(([name]) => run.columns[name]);
    const hasLooks = Object.keys(data.looks.pictures).length + Object.keys(data.looks.texts).length > 0;
    const state = { sort: "mean", down: true, page: 0, rows: [] };
    const inputs = Object.fromEntries($$("[data-bound]", filters).map((input) => [input.dataset.bound, input]));
    const heads = {};
    const head = (name, title, text) => {
      const button = make("button", { text: title, onclick: () => { state.down = state.sort === name ? !state.down : !text; state.sort = name; state.page = 0; update(); } });
      return (heads[name] = make("th", { scope: "col", class: text ? "text" : null }, button));
    };
    $("thead", table).append(make("tr", {}, make("th", { scope: "col", "aria-label": "choose" }), hasLooks ? make("th", { scope: "col", class: "text", text: "sample" }) : null, head("id", "id", true),
      ...columns.map(([name, title]) => head(name, title, ["given", "suggested"].includes(name)))));

    function filter() {
      const bound = (name, missing) => (inputs[name].value === "" ? missing : Number(inputs[name].value));
      const [m0, m1, s0, s1] = [bound("mean0", -Infinity), bound("mean1", Infinity), bound("spread0", -Infinity), bound("spread1", Infinity)];
      const free = ["mean0", "mean1", "spread0", "spread1"].every((name) => inputs[name].value === "");
      const label = inputs.given && inputs.given.value !== "" ? Number(inputs.given.value) : null;
      const { mean, spread, given } = run.columns, rows = [];
      for (let row = 0; row < run.length; row++)
        if ((free || (mean[row] >= m0 && mean[row] <= m1 && spread[row] >= s0 && spread[row] <= s1)) && (label === null || given[row] === label)) rows.push(row);
      return rows;
    }

    function sort(rows) {
      const values = run.columns[state.sort], sign = state.down ? -1 : 1;
      return rows.sort((a, b) => {
        const [x, y] = [values[a], values[b]];
        if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
        return sign * (x - y) || a - b;
      });
    }

    function show() {
      const rows = state.rows.slice(state.page * PAGE, (state.page + 1) * PAGE).map((row) => {
        const id = run.columns.id[row];
        return make("tr", {}, make("td", {}, checkbox(id)), hasLooks ? make("td", { class: "text" }, look(id, false)) : null, make("td", { class: "text", text: String(id) }),
          ...columns.map(([name]) => {
            const text = ["given", "suggested"].includes(name);
            return make("td", { class: text ? "text" : null, text: text ? labelOf(run, name, id) || "-" : format(run.columns[name][row]) });
          }));
      });
      $("tbody", table).replaceChildren(...rows);
      const pages = Math.max(1, Math.ceil(state.rows.length / PAGE));
      $('[data-role="page"]', root).textContent = `${(state.page + 1).toLocaleString("en")} of ${pages.toLocaleString("en")}`;
      $('[data-role="back"]', root).disabled = state.page === 0;
      $('[data-role="next"]', root).disabled = state.page >= pages - 1;
    }

    function update() {
      state.rows = sort(filter());
      for (const [name, cell] of Object.entries(heads)) cell.setAttribute("aria-sort", name === state.sort ? (state.down ? "descending" : "ascending") : "none");
      $('[data-role="count"]', root).textContent = `${state.rows.length.toLocaleString("en")} of ${run.length.toLocaleString("en")} samples`;
      show();
    }

    const turn = (by) => () => { state.page += by; show(); };
    $('[data-role="back"]', root).addEventListener("click", turn(-1));
    $('[data-role="next"]', root).addEventListener("click", turn(1));
    $('[data-role="export"]', root).addEventListener("click", () => csv(run, state.rows.map((row) => run.columns.id[row]), "samples.csv"));
    $('[data-role="reset"]', root).addEventListener("click", () => {
      for (const input of Object.values(inputs)) input.value = "";
      if (run.views.map) run.views.map.signal("brush_x", [0, 0]).signal("brush_y", [0, 0]).run();
      state.page = 0;
      update();
    });
    for (const input of Object.values(inputs)) input.addEventListener("input", () => { state.page = 0; update(); });
    update();
    return {
      bound(mean, spread) {
        const set = (name, range) => {
          inputs[name + "0"].value = range ? Number(Math.min(...range).toPrecision(3)) : "";
          inputs[name + "1"].value = range ? Number(Math.max(...range).toPrecision(3)) : "";
        };
        set("mean", mean);
        set("spread", spread);
        state.page = 0;
        update();
      },
    };
  }

  // tabs, of several runs

  const tabs = $$('[role="tab"]');
  function open(index) {
    tabs.forEach((tab, i) => {
      tab.setAttribute("aria-selected", String(i === index));
      tab.tabIndex = i === index ? 0 : -1;
      $(`#run${i}`).hidden = i !== index;
    });
    start(runs[index]);
    for (const link of $$("nav [data-section]")) {
      const target = $(`#run${index} [data-part="${link.dataset.section}"]`);
      for (const other of $$(`[id="${link.dataset.section}"]`)) other.removeAttribute("id");
      if (target) target.id = link.dataset.section;
    }
  }
  tabs.forEach((tab, index) => {
    tab.addEventListener("click", () => open(index));
    tab.addEventListener("keydown", (event) => {
      const to = { ArrowRight: index + 1, ArrowLeft: index - 1, Home: 0, End: tabs.length - 1 }[event.key];
      if (to === undefined || !tabs[to]) return;
      event.preventDefault();
      open(to);
      tabs[to].focus();
    });
  });

  function start(run) {
    if (!run.table) {
      run.table = makeTable(run);
      fillGallery(run);
    }
    return drawVisible();
  }

  const bar = $("#chosen");
  $('[data-role="csv"]', bar).addEventListener("click", () => csv(shownRun(), chosen, "chosen.csv"));
  $('[data-role="none"]', bar).addEventListener("click", () => choose([...chosen], false));
  $('[data-role="see"]', bar).addEventListener("click", () => $('[data-part="courses"]', $(`#run${shownRun().index}`)).scrollIntoView({ behavior: "smooth" }));
  addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });

  fillDisagreed();
  window.report = { runs, chosen, ready: null };
  start(runs[0]).then(() => { window.report.ready = performance.now(); });
})();
