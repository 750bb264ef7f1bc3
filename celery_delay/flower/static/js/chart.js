/* Bar charts in SVG, with the same numbers as a table for who cannot see them. */

import { h, s, show } from "./dom.js";

const HEIGHT = 168;
const MARGIN = { top: 12, right: 4, bottom: 22, left: 40 };

const short = (number) => new Intl.NumberFormat(undefined, { notation: "compact" }).format(number);

/** Round numbers from 0 up to no less than `most`, four or five of them. */
function ticks(most) {
    const rough = Math.max(most, 1) / 4;
    const power = 10 ** Math.floor(Math.log10(rough));
    // tasks are counted: 2.5 of them are none
    const step = Math.max(1, [1, 2, 2.5, 5, 10].map((one) => one * power).find((one) => one >= rough && (one < 1 || Number.isInteger(one))));
    return Array.from({ length: Math.ceil(Math.max(most, 1) / step) + 1 }, (_, index) => index * step);
}

function labelled(bars, width) {
    const room = Math.max(1, Math.floor(width / 58));
    return Math.ceil(bars.length / room);
}

function draw(holder, bars, options) {
    const width = Math.max(160, holder.clientWidth);
    const inner = { width: width - MARGIN.left - MARGIN.right, height: HEIGHT - MARGIN.top - MARGIN.bottom };
    const marks = ticks(Math.max(...bars.map((one) => one.value), 0));
    const top = marks.at(-1);
    const y = (value) => MARGIN.top + inner.height * (1 - value / top);
    const step = inner.width / bars.length;
    const every = labelled(bars, inner.width);
    const grid = marks.map((value) => s("g", { class: "delayed-chart-grid" },
        s("line", { x1: MARGIN.left, x2: width - MARGIN.right, y1: y(value), y2: y(value) }),
        s("text", { x: MARGIN.left - 6, y: y(value) + 3.5, "text-anchor": "end" }, short(value))));
    const columns = bars.map((bar, index) => {
        const x = MARGIN.left + step * index;
        // a single one among thousands is still to be seen
        const height = bar.value ? Math.max(2, inner.height * (bar.value / top)) : 0;
        return s("g", { class: `delayed-bar ${bar.kind || ""}` },
            s("title", null, `${bar.title}: ${bar.value.toLocaleString()}`),
            s("rect", { class: "delayed-bar-room", x, y: MARGIN.top, width: step, height: inner.height }),
            s("rect", { class: "delayed-bar-fill", x: x + step * 0.12, width: step * 0.76, rx: Math.min(2, step / 5),
                y: MARGIN.top + inner.height - height, height }),
            index % every === 0 ? s("text", { x: x + step / 2, y: HEIGHT - 6, "text-anchor": "middle" }, bar.label) : null);
    });
    show(holder, s("svg", { width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": options.summary },
        grid, columns));
}

/**
 * Draw bars into `holder`, anew when its width changes.
 *
 * bars: [{label, title, value, kind}]; options: {summary, caption, heading}.
 */
export function chart(holder, bars, options) {
    const drawing = h("div", { class: "delayed-chart-drawing" });
    const table = h("table", { class: "visually-hidden" },
        h("caption", null, options.caption),
        h("thead", null, h("tr", null, h("th", { scope: "col" }, options.heading), h("th", { scope: "col" }, "Tasks"))),
        h("tbody", null, bars.map((bar) => h("tr", null, h("th", { scope: "row" }, bar.title), h("td", null, String(bar.value))))));
    // the table takes no room, but a table that is clipped can still widen the page
    show(holder, drawing, h("div", { class: "delayed-chart-table" }, table));
    draw(drawing, bars, options);
    holder.redraw?.disconnect();
    let width = drawing.clientWidth;
    holder.redraw = new ResizeObserver(() => {
        if (drawing.clientWidth !== width) {
            width = drawing.clientWidth;
            draw(drawing, bars, options);
        }
    });
    holder.redraw.observe(drawing);
}
