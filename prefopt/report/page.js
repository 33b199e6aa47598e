"use strict";
(() => {
  const all = (root, what) => Array.from(root.querySelectorAll(what));
  const root = document.documentElement;

  // Light, dark, or what the system says. A page from a file may have no storage: then it forgets.
  const themes = ["system", "light", "dark"];
  for (const button of all(document, "[data-theme-switch]")) {
    const show = (theme) => {
      if (theme === "system") delete root.dataset.theme;
      else root.dataset.theme = theme;
      button.textContent = "Theme: " + theme;
    };
    let at = 0;
    button.hidden = false;
    button.addEventListener("click", () => {
      at = (at + 1) % themes.length;
      show(themes[at]);
    });
  }

  // Samples: words to search for, sides to show, choices to keep to.
  for (const tools of all(document, "[data-tools]")) {
    const place = document.getElementById(tools.dataset.tools);
    const samples = all(place, "[data-sample]");
    const texts = samples.map((one) => one.textContent.toLowerCase());
    const search = tools.querySelector("[data-search]");
    const kinds = all(tools, "[data-kind]");
    const choices = all(tools, "[data-choice]");
    const shading = tools.querySelector("[data-shading]");
    const found = tools.querySelector("[data-found]");
    const pressed = (button) => button.getAttribute("aria-pressed") === "true";
    const update = () => {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      const shown = new Set(kinds.filter(pressed).map((one) => one.dataset.kind));
      let count = 0;
      samples.forEach((one, i) => {
        const fits = choices.every((choice) => !choice.value ||
          (one.getAttribute("data-" + choice.dataset.choice) || "").split(" ").includes(choice.value));
        one.hidden = !fits || !words.every((word) => texts[i].includes(word));
        count += one.hidden ? 0 : 1;
        if (kinds.length) for (const side of all(one, "[data-of]")) side.hidden = !shown.has(side.dataset.of);
      });
      found.textContent = count + " of " + samples.length + " shown";
    };
    tools.hidden = false;
    search.addEventListener("input", update);
    for (const choice of choices) choice.addEventListener("change", update);
    for (const button of kinds) button.addEventListener("click", () => {
      button.setAttribute("aria-pressed", String(!pressed(button)));
      update();
    });
    if (shading) shading.addEventListener("click", () => {
      shading.setAttribute("aria-pressed", String(!pressed(shading)));
      place.classList.toggle("plain", !pressed(shading));
    });
    update();
  }

  // Runs over one another: a switch for each takes it out of figures and tables.
  for (const tools of all(document, "[data-runs]")) {
    tools.hidden = false;
    for (const button of all(tools, "[data-run]")) button.addEventListener("click", () => {
      const on = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(on));
      for (const part of all(document, `[data-of-run="${button.dataset.run}"], svg [id$="-run${button.dataset.run}"]`))
        part.style.display = on ? "" : "none";
    });
  }

  // The number of one word.
  const told = document.createElement("p");
  told.className = "told";
  told.setAttribute("role", "status");
  told.hidden = true;
  document.body.append(told);
  let now = null;
  const tell = (word) => {
    if (now) now.classList.remove("now");
    now = word;
    told.hidden = !word;
    if (!word) return;
    word.classList.add("now");
    told.textContent = "“" + word.textContent.trim() + "”: " + word.title;
  };
  for (const text of all(document, "[data-shaded]")) {
    const words = all(text, "span");
    text.addEventListener("mouseover", (event) => { if (words.includes(event.target)) tell(event.target); });
    text.addEventListener("click", (event) => { if (words.includes(event.target)) tell(event.target); });
    text.addEventListener("mouseleave", () => tell(null));
    text.addEventListener("blur", () => tell(null));
    text.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      const at = words.indexOf(now);
      tell(words[Math.min(words.length - 1, Math.max(0, at < 0 ? (step > 0 ? 0 : words.length - 1) : at + step))]);
    });
  }
  for (const part of all(document, ".scripted")) part.hidden = false;
})();
