/* Elements.  Text goes in as text and attributes as attributes: nothing that is stored can become
   markup, so there is no innerHTML anywhere in these files. */

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
    for (const [name, value] of Object.entries(attributes || {})) {
        if (value === null || value === undefined || value === false) {
            continue;
        }
        if (typeof value === "function") {
            element.addEventListener(name, value);
        } else {
            element.setAttribute(name, value === true ? "" : String(value));
        }
    }
    element.append(...children.flat(Infinity).filter((one) => one !== null && one !== undefined && one !== false));
    return element;
}

/** An HTML element: `h("a", {href: "…", click: go}, "text", child)`; functions are listeners. */
export function h(name, attributes, ...children) {
    return fill(document.createElement(name), attributes, children);
}

/** The same for SVG. */
export function s(name, attributes, ...children) {
    return fill(document.createElementNS(SVG, name), attributes, children);
}

export const byId = (id) => document.getElementById(id);

/** Put `children` in the place of what `element` has. */
export function show(element, ...children) {
    element.replaceChildren();
    return fill(element, null, children);
}

/** Write text only where it differs, so that screen readers and selections are left in peace. */
export function say(element, text) {
    if (element.textContent !== String(text)) {
        element.textContent = text;
    }
}

export function toggle(element, visible) {
    element.classList.toggle("d-none", !visible);
}

export function icon(path, title) {
    return s("svg", { viewBox: "0 0 16 16", class: "delayed-icon", "aria-hidden": title ? null : "true" },
        title ? s("title", null, title) : null, s("path", { d: path }));
}
