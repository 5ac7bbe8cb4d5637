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

  const choose = (event) => {
    const member = event.target.closest("[data-group]");
    if (!member) return;
    show(member.dataset.group);
    compare.classList.add("chosen");
  };
  const close = () => compare.classList.remove("chosen"); // on a narrow screen the panel covers the sources

  compare.addEventListener("mousemove", choose); // not mouseover, which scrolling under a resting pointer fires too
  compare.addEventListener("focusin", choose);
  compare.addEventListener("keydown", (event) => {
    if (event.key === "Escape") close();
  });
  compare.addEventListener("click", (event) => {
    choose(event);
    if (event.target.closest(".close")) close();
    const link = event.target.closest("a[data-group]");
    if (!link) return;
    const line = compare.querySelector(`.line[data-group="${link.dataset.group}"]`);
    const panel = document.getElementById(`layer-${link.dataset.group}`);
    if ("list" in link.dataset && line) {
      event.preventDefault();
      line.scrollIntoView({ block: "center", inline: "nearest" });
    } else if (panel && compare.contains(panel)) {
      event.preventDefault();
      panel.focus({ preventScroll: true });
    }
  });

  if (panels.length) {
    const named = [...panels].find((panel) => `#${panel.id}` === location.hash);
    show((named ?? panels[0]).dataset.panel);
    if (named) compare.classList.add("chosen");
  }
}
