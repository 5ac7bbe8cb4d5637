"use strict";
// A layer that is pointed at or focused lights up on both sides, and its panel is shown. Without this script every
// panel is shown below the sources, and the links lead to them.
document.documentElement.classList.add("js");

for (const compare of document.querySelectorAll("[data-pair]")) {
  const members = compare.querySelectorAll("[data-group]");
  const panels = compare.querySelectorAll("[data-panel]");

  const show = (group) => {
    for (const member of members) {
      const lit = member.dataset.group === group;
      member.classList.toggle("lit", lit);
      if ("list" in member.dataset) {
        if (lit) member.setAttribute("aria-current", "true");
        else member.removeAttribute("aria-current");
      }
    }
    if ([...panels].some((panel) => panel.dataset.panel === group)) {
      for (const panel of panels) panel.classList.toggle("active", panel.dataset.panel === group);
    }
  };

  const pointed = (event) => {
    const member = event.target.closest("[data-group]");
    if (member) show(member.dataset.group);
  };
  compare.addEventListener("mouseover", pointed);
  compare.addEventListener("focusin", pointed);
  compare.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-group]");
    if (!link) return;
    const group = link.dataset.group;
    show(group);
    if ("list" in link.dataset) {
      const line = compare.querySelector(`.line[data-group="${group}"]`);
      if (line) {
        event.preventDefault();
        line.scrollIntoView({ block: "center", inline: "nearest" });
      }
      return;
    }
    const panel = document.getElementById(`layer-${group}`);
    if (panel && compare.contains(panel)) {
      event.preventDefault();
      panel.focus({ preventScroll: true });
    }
  });

  if (panels.length) {
    const named = [...panels].find((panel) => `#${panel.id}` === location.hash);
    show((named ?? panels[0]).dataset.panel);
  }
}
