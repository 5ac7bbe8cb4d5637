"use strict";
// A layer that is pointed at or focused lights up on both sides, and its panel is shown. Without this script every
// panel is shown below the sources, and the links lead to them.
document.documentElement.classList.add("js");


const root = document.documentElement;
const press = (selector, which) => {
  for (const button of document.querySelectorAll(selector)) button.setAttribute("aria-pressed", String(which(button)));
};
const unfold = (all) => {
  root.classList.toggle("unfolded", all);
  press("[data-unfold]", () => all);
};
for (const button of document.querySelectorAll("[data-unfold]")) {
  button.addEventListener("click", () => unfold(!root.classList.contains("unfolded")));
}
const turn = (side) => {
  if (side) root.dataset.only = side;
  else delete root.dataset.only;
  press("[data-side]", (other) => other.dataset.side === side);
};
for (const button of document.querySelectorAll("[data-side]")) {
  button.addEventListener("click", () => turn(button.dataset.side));
}
const narrow = matchMedia("screen and (max-width: 48rem)"); // where the frameworks are two tabs
const fit = () => {
  if (narrow.matches && !root.dataset.only && document.querySelector(".reading [data-side]")) turn("torch");
};
narrow.addEventListener("change", fit);
fit();
const reach = () => { // a link to a line that is folded away, or in the other tab
  const target = location.hash && document.getElementById(location.hash.slice(1));
  if (!target || !target.classList.contains("line") || target.offsetHeight) return;
  if (target.classList.contains("fold")) unfold(true);
  if (root.dataset.only && !target.offsetHeight) turn(target.id.split("-")[0]);
  target.scrollIntoView({ block: "center" });
};
addEventListener("hashchange", reach);
reach();

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

  const light = (event) => {
    const member = event.target.closest("[data-group]");
    if (member) show(member.dataset.group);
    return member !== null;
  };
  const choose = (event) => { // opens the panel, too, where it takes room from the sources
    const found = light(event);
    if (found) compare.classList.add("chosen");
    return found;
  };
  const close = () => compare.classList.remove("chosen", "pinned");

  compare.addEventListener("mousemove", (event) => { // not mouseover, which scrolling under a resting pointer fires too
    if (!compare.classList.contains("pinned")) light(event);
  });
  compare.addEventListener("focusin", (event) => {
    if (choose(event)) compare.classList.remove("pinned");
  });
  compare.addEventListener("keydown", (event) => {
    if (event.key === "Escape") close();
  });
  compare.addEventListener("click", (event) => {
    if (choose(event) && panels.length) compare.classList.add("pinned");
    if (event.target.closest(".close")) close();
    const link = event.target.closest("a[data-group]");
    if (!link) return;
    const lines = compare.querySelectorAll(`.line[data-group="${link.dataset.group}"]`);
    const line = [...lines].find((one) => one.offsetHeight); // the other framework's may be in the other tab
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
