/* The cells of a task, for the table. */

import { isReadOnly, taskUrl } from "./api.js";
import { h, icon, show } from "./dom.js";
import { term } from "./search.js";
import { countdown, time } from "./times.js";
import { VERBS, badge, verbsFor } from "./words.js";

const DOTS = "M3 9.5a1.5 1.5 0 1 1 0-3 1.5 1.5 0 0 1 0 3zm5 0a1.5 1.5 0 1 1 0-3 1.5 1.5 0 0 1 0 3zm5 0a1.5 1.5 0 1 1 0-3 1.5 1.5 0 0 1 0 3z";
const WAITING = ["SCHEDULED", "HELD", "QUARANTINED"];

export const missing = () => h("span", { class: "value-missing" }, "—");

/** A chip that searches for what it names; `find` is called with the term. */
function chip(field, value, find) {
    return h("button", { type: "button", class: `delayed-chip delayed-chip-${field}`, title: `Find ${field} ${value}`,
        click: () => find(term(field, value)) }, value);
}

/** Texts of the arguments, as the audit may show them; null: not to be shown. */
export function call(row) {
    const args = (row.args || "").replace(/^\(|,?\)$/g, "").replace(/^\[|\]$/g, "");
    const kwargs = row.kwargs && row.kwargs !== "{}" ? row.kwargs : "";
    return [args, kwargs].filter(Boolean).join(", ");
}

function due(cell, row) {
    if (row.eta_ms === null || row.eta_ms === undefined) {
        show(cell, missing());
        return;
    }
    const ticks = row.state === "SCHEDULED";
    show(cell, ticks ? countdown(row.eta_ms, { late: !row.gate }) : null,
        h("div", { class: ticks ? "delayed-muted delayed-eta" : "delayed-eta" }, time(row.eta_ms)));
}

function task(cell, row, find) {
    const text = call(row);
    show(cell, h("a", { href: taskUrl(row.task_id) }, row.task || "unreadable record"),
        text ? h("code", { class: "delayed-call", title: text }, text) : null,
        row.error ? h("div", { class: "delayed-error" }, row.error) : null,
        row.namespace || row.tags?.length || row.unique_key ? h("div", { class: "delayed-chips" },
            row.namespace ? chip("namespace", row.namespace, find) : null,
            (row.tags || []).map((one) => chip("tag", one, find)),
            row.unique_key ? h("span", { class: "delayed-chip delayed-chip-key", title: "Unique key" }, row.unique_key) : null) : null);
}

/** The first part of a UUID, and as much of another id. */
const shortId = (text) => (text.length > 9 ? `${text.slice(0, 8)}…` : text);

function id(cell, row) {
    show(cell, h("a", { href: taskUrl(row.task_id), class: "delayed-id", title: row.task_id }, shortId(row.task_id)));
}

function state(cell, row) {
    show(cell, h("span", { class: badge(row.state) }, row.state),
        row.gate ? h("div", { class: "delayed-muted delayed-gate" }, `waits: ${row.gate}`) : null,
        row.reason ? h("div", { class: "delayed-error" }, row.reason) : null);
}

function select(cell, row, selection) {
    if (WAITING.includes(row.state)) {
        show(cell, h("input", { type: "checkbox", class: "form-check-input", "aria-label": `Select ${row.task || "task"} ${row.task_id}`,
            checked: selection.has(row.task_id), "data-select": row.task_id, change: (event) => selection.set(row, event.target.checked) }));
    }
}

function menu(cell, row, act) {
    const verbs = verbsFor(row.state);
    if (!verbs.length) {
        return;
    }
    // fixed: the card around the table clips what hangs out of it
    show(cell, h("div", { class: "dropdown" },
        h("button", { type: "button", class: "btn btn-sm delayed-more", "data-bs-toggle": "dropdown", "aria-expanded": "false",
            "data-bs-popper-config": '{"strategy":"fixed"}', "aria-label": `Actions for ${row.task || "task"} ${row.task_id}`,
            "data-menu": row.task_id }, icon(DOTS)),
        h("ul", { class: "dropdown-menu dropdown-menu-end" }, verbs.map((verb) => h("li", null,
            h("button", { type: "button", class: `dropdown-item${VERBS[verb].danger ? " text-danger" : ""}`, "data-verb": verb,
                click: () => act(verb, [row]) }, `${VERBS[verb].label}…`))))));
}

/** DataTables' columns; cells are filled with elements, as it would take text for markup. */
export function columns({ selection, find, act }) {
    const column = (name, title, className, fill) => ({
        data: null, defaultContent: "", name, title, className, orderable: false, createdCell: (cell, _, row) => {
            cell.dataset.title = title;
            fill(cell, row);
        },
    });
    const all = [
        column("due", "Due in", "delayed-cell-due", due),
        column("task", "Task", "delayed-cell-task", (cell, row) => task(cell, row, find)),
        column("id", "Id", "delayed-cell-id", id),
        column("queue", "Queue", "delayed-cell-queue", (cell, row) => show(cell, row.queue ? chip("queue", row.queue, find) : missing())),
        column("state", "State", "delayed-cell-state", state),
    ];
    return isReadOnly() ? all : [
        column("select", "", "delayed-cell-select", (cell, row) => select(cell, row, selection)),
        ...all,
        column("menu", "", "delayed-cell-menu", (cell, row) => menu(cell, row, act)),
    ];
}
