"use strict";
(() => {
  const FIELDS = [
    ["shift", "ΔH"],
    ["h", "H, image"],
    ["hRemoved", "H⁻, removed"],
    ["dKept", "d⁺, preserved"],
    ["dRemoved", "d⁻, removed"],
    ["logp", "log p, image"],
    ["logpKept", "log p, preserved"],
    ["logpRemoved", "log p, removed"],
    ["score", "score"],
  ];
  const models = JSON.parse(document.getElementById("models").textContent);
  const panel = document.getElementById("panel");
  const panelToken = document.getElementById("panel-token");
  const panelPlace = document.getElementById("panel-place");
  const boxes = Array.from(document.querySelectorAll(".tokens"));
  const rows = new Map(); // data of each row that was shown, by its number
  let here = null; // the token whose numbers are shown
  let mousePlace = ""; // where on the screen the mouse or pen was last

  function dataOf(row) {
    if (!rows.has(row)) rows.set(row, JSON.parse(document.getElementById("data-" + row).textContent));
    return rows.get(row);
  }

  function shown(text) {
    return text.replace(/\n/g, "↵\n").replace(/\t/g, "⇥\t");
  }

  function isInsideWord(before, after) {
    return /[\p{L}\p{N}]$/u.test(before) && /^[\p{L}\p{N}]/u.test(after);
  }

  // Tokens -----------------------------------------------------------------------------------------------------------

  function fill(box) {
    if (box.filled) return;
    const data = dataOf(box.dataset.row);
    const scores = data.models[box.dataset.model];
    const fragment = document.createDocumentFragment();
    data.texts.forEach((text, place) => {
      const token = document.createElement("span");
      const selected = scores.selected !== undefined && scores.selected[place] === "1";
      const part = data.parts[place];
      token.className = "t" + (scores.level ? " l" + scores.level[place] : "") + (selected ? " s" : "");
      if (part && part[0] > 1) token.className += " part";
      token.textContent = part && part[0] > 1 ? part[0] + "/" + part[1] : shown(text);
      if (place > 0 && !isInsideWord(data.texts[place - 1], text)) token.prepend(document.createElement("wbr"));
      token.setAttribute("role", "option");
      token.setAttribute("aria-selected", selected);
      token.tabIndex = -1;
      token.place = place;
      fragment.append(token);
    });
    box.replaceChildren(fragment);
    box.filled = true;
    if (box.firstChild) {
      box.removeAttribute("tabindex");
      box.firstChild.tabIndex = 0;
      box.tabStop = box.firstChild;
    }
  }

  const observer = new IntersectionObserver(
    (entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => {
      observer.unobserve(entry.target);
      entry.target.querySelectorAll(".tokens").forEach(fill);
    }),
    { rootMargin: "600px 0px" },
  );
  document.querySelectorAll("article").forEach((article) => observer.observe(article));
  window.addEventListener("beforeprint", () => boxes.forEach(fill));

  // Numbers ----------------------------------------------------------------------------------------------------------

  function numbersOf(scores, place) {
    const list = document.createElement("dl");
    for (const [name, label] of FIELDS) {
      if (scores[name] === undefined) continue;
      const pair = document.createElement("div");
      const term = document.createElement("dt");
      const value = document.createElement("dd");
      term.textContent = label;
      value.textContent = scores[name][place] === null ? "–" : String(scores[name][place]).replace("-", "−");
      value.dataset.field = name;
      pair.append(term, value);
      list.append(pair);
    }
    return list;
  }

  function describe(scores, place) {
    if (scores.selected === undefined) return "no views";
    return scores.selected[place] === "1" ? "perception token" : "not a perception token";
  }

  function show(token) {
    if (token === here) return;
    clear();
    here = token;
    token.classList.add("here");
    const box = token.parentNode;
    const data = dataOf(box.dataset.row);
    const place = token.place;
    const part = data.parts[place];
    for (const twin of document.querySelectorAll('.tokens[data-row="' + box.dataset.row + '"]')) {
      if (twin !== box && twin.filled) twin.children[place].classList.add("twin");
    }
    panelToken.textContent = shown(data.texts[place]);
    panelPlace.textContent =
      "token " + (place + 1) + " of " + data.texts.length +
      (part ? ", part " + part[0] + " of " + part[1] + " of this character" : "") +
      (models.length === 1 ? " · " + describe(data.models[0], place) : "");
    const columns = data.models.map((scores, model) => {
      const column = document.createElement("div");
      if (models.length > 1) {
        const name = document.createElement("h3");
        name.textContent = models[model] + " · " + describe(scores, place);
        column.append(name);
      }
      column.append(numbersOf(scores, place));
      return column;
    });
    document.getElementById("panel-models").replaceChildren(...columns);
    panel.hidden = false;
    uncover(token);
  }

  // The panel keeps its side of the window until it would lie over the token.
  function uncover(token) {
    const over = panel.getBoundingClientRect();
    const under = token.getBoundingClientRect();
    if (under.bottom > over.top && under.top < over.bottom) panel.classList.toggle("above");
  }

  function clear() {
    document.querySelectorAll(".here, .twin").forEach((token) => token.classList.remove("here", "twin"));
    here = null;
  }

  function close() {
    clear();
    panel.hidden = true;
  }

  function tokenOf(event) {
    return event.target instanceof Element ? event.target.closest(".tokens > .t") : null;
  }

  // Not mouseover: a mouse at rest gets that too, when the page scrolls or the panel moves or goes, and after a tap
  // elsewhere. Some browsers then report a move to where it already is.
  document.addEventListener("pointermove", (event) => {
    const place = event.screenX + " " + event.screenY;
    if (event.pointerType === "touch" || place === mousePlace) return;
    mousePlace = place;
    const token = tokenOf(event);
    if (token) show(token);
  });
  document.addEventListener("click", (event) => {
    const token = tokenOf(event);
    if (token) moveTo(token);
  });
  document.addEventListener("focusin", (event) => {
    const token = tokenOf(event);
    if (token) return show(token);
    const box = event.target;
    if (box instanceof Element && box.matches(".tokens") && !box.filled) {
      fill(box);
      if (box.tabStop) box.tabStop.focus();
    }
  });
  document.getElementById("panel-close").addEventListener("click", () => {
    const token = here;
    close();
    if (token) token.parentNode.tabStop.focus({ preventScroll: true });
    close();
  });

  // Keyboard ---------------------------------------------------------------------------------------------------------

  function moveTo(token) {
    const box = token.parentNode;
    box.tabStop.tabIndex = -1;
    box.tabStop = token;
    token.tabIndex = 0;
    token.focus();
    show(token);
  }

  function nextSelected(token, step) {
    let next = token;
    do next = step > 0 ? next.nextElementSibling : next.previousElementSibling;
    while (next && !next.classList.contains("s"));
    return next;
  }

  // The token on the next line that is nearest to this one's column.
  function lineAway(token, step) {
    const from = token.getBoundingClientRect();
    let best = null;
    let line = null;
    for (let next = token; next; next = step > 0 ? next.nextElementSibling : next.previousElementSibling) {
      const to = next.getBoundingClientRect();
      if (step > 0 ? to.top < from.bottom - 2 : to.bottom > from.top + 2) continue;
      if (line === null) line = to.top;
      if (Math.abs(to.top - line) > 4) break;
      const distance = Math.abs(to.left - from.left);
      if (best === null || distance < best.distance) best = { token: next, distance };
    }
    return best && best.token;
  }

  function target(token, key) {
    const box = token.parentNode;
    const leftwards = getComputedStyle(box).direction === "rtl";
    switch (key) {
      case leftwards ? "ArrowLeft" : "ArrowRight": return token.nextElementSibling;
      case leftwards ? "ArrowRight" : "ArrowLeft": return token.previousElementSibling;
      case "ArrowDown": return lineAway(token, 1);
      case "ArrowUp": return lineAway(token, -1);
      case "Home": return box.firstElementChild;
      case "End": return box.lastElementChild;
      case "n": return nextSelected(token, 1);
      case "p": return nextSelected(token, -1);
      default: return undefined;
    }
  }

  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") return close();
    const token = tokenOf(event);
    if (!token || event.altKey || event.ctrlKey || event.metaKey) return;
    const next = target(token, event.key);
    if (next === undefined) return;
    event.preventDefault();
    if (next) moveTo(next);
  });
})();
