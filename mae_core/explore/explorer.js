// The page of explorer.py's widget. Python computes all pictures; the page draws them and says what it is asked.

const h = (tag, attributes = {}, ...children) => {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children);
  return element;
};

const LARGEST_MB = 8; // Jupyter's servers close the connection on messages over 10 MB

function draw(canvas, bytes) {
  const { width, height } = canvas;
  const rgba = new Uint8ClampedArray(width * height * 4).fill(255);
  const rgb = new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  for (let i = 0; i < width * height; i++) rgba.set(rgb.subarray(3 * i, 3 * i + 3), 4 * i);
  canvas.getContext("2d").putImageData(new ImageData(rgba, width, height), 0, 0);
}

function render({ model, el }) {
  const { side, grid, n_images: nImages, cases, first, judge, train } = model.get("about");
  const picture = (label) => h("canvas", { width: side, height: side, role: "img", "aria-label": label });
  const shown = (label, bytes) => {
    const canvas = picture(label);
    draw(canvas, bytes);
    return canvas;
  };
  const button = (text, act, more = {}) => h("button", { type: "button", onclick: act, ...more }, text);

  // Every change of the page goes through here; the picture that answers it repeats the number.
  const change = (values) => {
    local = "";
    say("");
    for (const [name, value] of Object.entries({ ...values, stroke: model.get("stroke") + 1 })) model.set(name, value);
    model.save_changes();
  };
  const step = (n) => change({ image: (Math.max(model.get("image"), 0) + n + nImages) % nImages });

  // The image with its patches: a grid of cells over a canvas. One cell has the focus; arrows move it.
  const board = picture("the image, without its hidden patches");
  const cells = [];
  const rows = [];
  let focus = 0;
  for (let row = 0; row < grid; row++) {
    const line = h("div", { role: "row" });
    for (let column = 0; column < grid; column++) {
      cells.push(h("div", { role: "gridcell", tabindex: row + column ? -1 : 0 }));
      line.append(cells.at(-1));
    }
    rows.push(line);
  }
  const patches = h(
    "div",
    { class: "mae-patches", role: "grid", "aria-label": "patches of the image; space hides or shows one", style: `--grid: ${grid}` },
    ...rows,
  );

  const showMask = () => {
    const hidden = model.get("hidden");
    cells.forEach((cell, i) => {
      const place = `row ${Math.floor(i / grid) + 1}, column ${(i % grid) + 1}`;
      cell.classList.toggle("hidden", hidden[i]);
      cell.setAttribute("aria-label", `${place}, ${hidden[i] ? "hidden" : "visible"}`);
    });
    const n = hidden.filter(Boolean).length;
    count.textContent = `${n} of ${hidden.length} patches hidden (${Math.round((100 * n) / hidden.length)} %)`;
  };
  const paint = ({ places, stroke }) => {
    const hidden = [...model.get("hidden")];
    const wanted = (stroke.value ??= !hidden[places[0]]);
    if (places.every((i) => hidden[i] === wanted)) return;
    for (const i of places) hidden[i] = wanted;
    change({ hidden });
    showMask();
  };
  const set = (places, stroke) => {
    queue.push({ places, stroke });
    work();
  };
  const moveFocus = (to, really = true) => {
    cells[focus].tabIndex = -1;
    cells[(focus = to)].tabIndex = 0;
    if (really) cells[focus].focus({ preventScroll: true });
  };

  // A stroke paints what its first patch becomes, on all patches that the pointer crosses.
  let stroke = null;
  const under = (event) => {
    const box = patches.getBoundingClientRect();
    const at = (offset, size) => Math.min(grid - 1, Math.max(0, Math.floor((offset / size) * grid)));
    return { row: at(event.clientY - box.top, box.height), column: at(event.clientX - box.left, box.width) };
  };
  patches.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    event.preventDefault();
    const at = under(event);
    const i = at.row * grid + at.column;
    stroke = { at };
    patches.setPointerCapture(event.pointerId);
    moveFocus(i);
    set([i], stroke);
  });
  patches.addEventListener("pointermove", (event) => {
    if (!stroke) return;
    const to = under(event);
    const [down, right] = [to.row - stroke.at.row, to.column - stroke.at.column];
    const steps = Math.max(Math.abs(down), Math.abs(right));
    if (!steps) return;
    const between = Array.from({ length: steps }, (_, k) => {
      const part = (k + 1) / steps;
      return (stroke.at.row + Math.round(part * down)) * grid + stroke.at.column + Math.round(part * right);
    });
    set(between, stroke);
    stroke.at = to;
  });
  for (const end of ["pointerup", "pointercancel"]) patches.addEventListener(end, () => (stroke = null));
  patches.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    const move = moves[event.key];
    if (move) {
      const within = (x) => Math.min(grid - 1, Math.max(0, x));
      moveFocus(within(Math.floor(focus / grid) + move[0]) * grid + within((focus % grid) + move[1]));
    } else if (event.key === " " || event.key === "Enter") set([focus], {});
    else return;
    event.preventDefault();
    event.stopPropagation(); // JupyterLab moves between cells with arrows
  });

  const count = h("p", { class: "mae-count", role: "status" });
  const ratioText = h("output", {}, "75 %");
  const ratio = h("input", { type: "range", min: 0.1, max: 0.9, step: 0.05, value: 0.75, "aria-label": "share of patches to hide" });
  let how = "random";
  // Strokes and new masks wait for each other: Python draws a mask when it has seen all strokes before it, and strokes go
  // onto the mask that was asked for before them.
  const queue = [];
  let asking = false;
  let seen = 0; // the last stroke that Python answered without a picture
  const work = () => {
    while (queue.length && !asking) {
      const [{ ask: wanted, ratio: share }] = queue;
      if (wanted && Math.max(model.get("picture").stroke, seen) < model.get("stroke")) return; // an answer is on its way
      const task = queue.shift();
      if (!wanted) paint(task);
      else {
        asking = true;
        local = "";
        say("");
        model.send({ ask: "mask", how: wanted, ratio: share });
      }
    }
  };
  const ask = (wanted, slides = false) => {
    if (wanted === "random" || wanted === "block") how = wanted;
    if (slides && queue.at(-1)?.slides) queue.pop(); // only where the slider is now
    queue.push({ ask: wanted, ratio: Number(ratio.value), slides });
    work();
  };
  const answered = (told) => {
    if (told && "seen" in told) {
      seen = told.seen;
      if (!local) say(model.get("message"));
    } else asking = false;
    work();
  };
  const showRatio = () => {
    ratioText.textContent = `${Math.round(100 * ratio.value)} %`;
    ratio.setAttribute("aria-valuetext", ratioText.textContent);
  };
  ratio.addEventListener("input", () => {
    showRatio();
    ask(how, true);
  });
  ratio.addEventListener("keydown", (event) => event.key.startsWith("Arrow") && event.stopPropagation()); // as above
  showRatio();

  const title = h("strong", { class: "mae-title", "aria-live": "polite" });
  const message = h("p", { class: "mae-message", role: "status" });
  const say = (text) => (message.textContent = text);
  let local = ""; // a sentence of the page itself, which stays until something is done or Python has one
  const complain = (text) => say((local = text));
  const file = h("input", { type: "file", accept: "image/*", class: "mae-file" });
  const own = async (chosen) => {
    const size = chosen.size / 1e6;
    if (size > LARGEST_MB) return complain(`${chosen.name} has ${(Math.ceil(10 * size) / 10).toFixed(1)} MB: choose a picture of at most ${LARGEST_MB} MB.`);
    complain("");
    try {
      model.send({ ask: "own" }, undefined, [await chosen.arrayBuffer()]);
    } catch {
      complain(`${chosen.name} cannot be read: choose a picture.`); // a folder, say
    }
  };
  file.addEventListener("change", () => {
    const [chosen] = file.files;
    if (!chosen) return;
    own(chosen);
    file.value = "";
  });

  const choices = cases.map((name) => {
    const box = h("input", { type: "checkbox", value: name });
    box.addEventListener("change", () => {
      const chosen = cases.filter((_, i) => choices[i].querySelector("input").checked);
      if (chosen.length) change({ chosen });
      else box.checked = true;
    });
    return h("label", {}, box, ` ${name}`);
  });

  const original = picture("the original image");
  const originalTop = h("div");
  const attention = picture("the original image, dark where the encoder looks little");
  const cards = h("div", { class: "mae-cards" });
  const found = h("div", { class: "mae-found" });
  const search = button(`find the nearest training images (features of ${first})`, () => {
    complain("Looking for them among the training images …");
    model.send({ ask: "neighbours" });
  });

  const classes = (top) =>
    h(
      "ol",
      { class: "mae-top", role: "list", "aria-label": `likeliest classes, by the classifier of ${judge}` },
      ...top.map(([name, p]) =>
        h("li", { style: `--p: ${100 * p}%` }, h("span", {}, name), h("span", {}, `${Math.round(100 * p)} %`)),
      ),
    );
  const figure = (canvas, caption) => h("figure", {}, canvas, h("figcaption", {}, caption));

  const showPicture = () => {
    const now = model.get("picture");
    if (title.textContent !== now.title) title.textContent = now.title; // else it would be read aloud again
    draw(board, now.original);
    draw(original, now.original);
    draw(attention, now.attention);
    originalTop.replaceChildren(classes(now.top));
    cards.replaceChildren(
      ...now.cases.map(({ name, psnr, top, painted, error }) =>
        h(
          "section",
          { class: "mae-card", "data-case": name },
          h("h3", {}, name, h("span", {}, psnr === null ? "" : `PSNR ${psnr.toFixed(1)} dB`)),
          h(
            "div",
            { class: "mae-pair" },
            figure(shown(`reconstruction by ${name}`, painted), "reconstruction"),
            figure(shown(`error of ${name}`, error), "error"),
          ),
          classes(top),
        ),
      ),
    );
    if (!local) say(model.get("message"));
    root.dataset.stroke = now.stroke;
    work();
  };
  const showChosen = () => {
    const chosen = model.get("chosen");
    for (const label of choices) label.firstChild.checked = chosen.includes(label.firstChild.value);
  };
  const showFound = () => {
    found.replaceChildren(...model.get("neighbours").map(({ name, pixels }) => figure(shown(`a training image: ${name}`, pixels), name)));
    if (found.children.length) {
      local = "";
      say(model.get("message"));
    }
  };

  const root = h(
    "div",
    { class: "mae" },
    h(
      "div",
      { class: "mae-bar" },
      button("‹", () => step(-1), { "aria-label": "previous image" }),
      button("›", () => step(1), { "aria-label": "next image" }),
      button("random image", () => step(1 + Math.floor(Math.random() * Math.max(1, nImages - 1)))),
      h("label", { class: "mae-upload" }, file, "own picture …"),
      title,
    ),
    h(
      "div",
      { class: "mae-main" },
      h(
        "div",
        { class: "mae-left" },
        h("div", { class: "mae-board" }, board, patches),
        count,
        h("div", { class: "mae-bar" }, ...["random", "block", "grid", "all", "none", "invert"].map((name) => button(name, () => ask(name)))),
        h("div", { class: "mae-bar" }, h("span", {}, "hide"), ratio, ratioText),
        message,
      ),
      h(
        "div",
        { class: "mae-right" },
        h("fieldset", { class: "mae-bar" }, h("legend", {}, "pre-trained with masks"), ...choices),
        cards,
        h(
          "section",
          { class: "mae-card mae-wide" },
          h("h3", {}, "the original"),
          h("div", { class: "mae-pair" }, figure(original, "original"), figure(attention, `where the encoder of ${judge || first} looks`)),
          h("div", {}, originalTop, judge ? h("p", { class: "mae-count" }, `All classes are named by the classifier of ${judge}.`) : ""),
        ),
        ...(train ? [h("div", {}, search, found)] : []),
      ),
    ),
  );
  root.addEventListener("dragover", (event) => {
    if (!event.dataTransfer.types.includes("Files")) return;
    event.preventDefault();
    root.classList.add("mae-drop");
  });
  root.addEventListener("dragleave", (event) => root.contains(event.relatedTarget) || root.classList.remove("mae-drop"));
  root.addEventListener("drop", (event) => {
    root.classList.remove("mae-drop");
    const [dropped] = event.dataTransfer.files;
    if (!dropped) return;
    event.preventDefault();
    event.stopPropagation(); // JupyterLab would insert the picture into the notebook
    own(dropped);
  });
  el.append(root);

  const followed = {
    "change:hidden": showMask,
    "change:picture": showPicture,
    "change:chosen": showChosen,
    "change:neighbours": showFound,
    "change:message": () => {
      local = "";
      say(model.get("message"));
    },
    "msg:custom": answered,
  };
  for (const [event, act] of Object.entries(followed)) {
    model.on(event, act);
    act();
  }
  return () => {
    for (const [event, act] of Object.entries(followed)) model.off(event, act);
  };
}

export default { render };
