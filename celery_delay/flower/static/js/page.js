/* The page "Delayed": the overview, and the table of tasks. */

import { act as ask, actOnAll } from "./actions.js";
import { isReadOnly, taskUrl } from "./api.js";
import { isOpen, wire } from "./dialog.js";
import { byId, h, say, show, toggle } from "./dom.js";
import { Forecast, look, steer, trouble } from "./overview.js";
import { Pages } from "./paging.js";
import { pause, resume } from "./pauses.js";
import { columns } from "./rows.js";
import { read, term } from "./search.js";
import { Selection } from "./selection.js";
import { now, span, startTicking } from "./times.js";
import { tasks } from "./words.js";

const EVERY_MS = 3000;
const FORECAST_EVERY = 10;
/** What Redis, or a lookup, answers at once; anything else is not asked again by itself. */
const QUICK = ["state", "eta_to", "id"];
/** What the history of a browser keeps of an address is bounded. */
const MOST_CURSORS = 1000;
/** The quarantine has no order in Redis: each page of it looks at all places. */
const LARGE_QUARANTINE = 2000;

const given = new URLSearchParams(window.location.search);
/** What the history remembers of this page: on which page of the table somebody was. */
const before = window.history.state?.delayed || {};
const view = { state: given.get("state") || "", rows: [], page: null, failed: false, isQuiet: false, text: startText(), until: before.until ?? null };

function startText() {
    const terms = ["task", "queue", "tag", "namespace", "id"].flatMap((field) => given.getAll(field).map((value) => term(field, value)));
    return [given.get("q") || "", ...terms].filter(Boolean).join(" ");
}

// --- what is asked for ----------------------------------------------------------------------

function parameters(text = view.text) {
    const state = view.state === "DUE" ? { state: "SCHEDULED", eta_to: view.until } : { state: view.state };
    return Object.fromEntries(Object.entries({ ...state, ...read(text) }).filter(([, value]) => value !== "" && value.length !== 0));
}

/** The search for all that match, if it is one that changes of many understand. */
function filter() {
    const { search, id, ...rest } = parameters();
    return search || id ? null : rest;
}

function description() {
    const what = [view.state ? view.state.toLowerCase() : "", view.text].filter(Boolean).join(" ");
    return what ? `“${what}”` : "“everything that waits”";
}

function remember() {
    const address = new URLSearchParams();
    if (view.state) {
        address.set("state", view.state);
    }
    if (view.text) {
        address.set("q", view.text);
    }
    const { key, cursors } = pages;
    const number = view.page?.number ?? 0;
    const state = cursors.length > MOST_CURSORS ? {} : { key, cursors, number, length: table.page.len(), until: view.until };
    window.history.replaceState({ delayed: state }, "", window.location.pathname + (address.size ? `?${address}` : ""));
}

// --- the table ------------------------------------------------------------------------------

const selection = isReadOnly() ? { drawn: () => undefined, clear: () => undefined, has: () => false } : new Selection({
    act,
    actOnAll: (verb) => afterwards(actOnAll(verb, filter(), description())),
    all: () => (filter() && view.page && (view.page.next !== null || view.page.number > 0)
        ? (view.page.total === null ? description() : tasks(view.page.total)) : ""),
});
const pages = new Pages((requests) => say(byId("delayed-progress"), `Looked at ${(requests * 10000).toLocaleString()} so far…`), before);

function act(verb, rows) {
    return afterwards(ask(verb, rows));
}

async function afterwards(asked) {
    if (await asked) {
        selection.clear();
        refresh();
        look();
    }
}

function find(text) {
    const rest = read(view.text);
    const [field] = text.split(":", 1);
    const others = view.text && !(field in rest) ? `${view.text} ` : "";
    table.search(others + text).draw();
    byId("delayed-table_filter").querySelector("input").focus();
}

async function load(request, draw) {
    const number = Math.floor(request.start / request.length);
    const { isQuiet } = view;
    view.isQuiet = false;
    byId("delayed-tasks").classList.toggle("delayed-quiet", isQuiet);
    view.text = request.search.value.trim();
    if (number === 0 || view.until === null) {
        // what becomes due meanwhile must not shift the pages behind the first
        view.until = Math.floor(now());
    }
    say(byId("delayed-progress"), "");
    try {
        const page = await pages.page(number, request.length, parameters());
        if (isQuiet && isActing()) {
            return; // a menu has been opened meanwhile: its row is not taken from under it
        }
        view.page = page;
        say(byId("delayed-progress"), "");
        remember();
        view.rows = page.rows;
        const seen = page.number * request.length + page.rows.length;
        // with more to come, but nobody knows how many, there is one more page
        const total = page.next === null ? seen : Math.max(page.total ?? 0, seen + 1);
        problem(null);
        draw({ draw: request.draw, data: page.rows, recordsTotal: total, recordsFiltered: total });
    } catch (error) {
        if (error.name !== "AbortError") {
            remember();
            problem(error);
            draw({ draw: request.draw, data: view.rows, recordsTotal: view.rows.length, recordsFiltered: view.rows.length });
        }
    }
}

function problem(error) {
    view.failed = error !== null;
    const mine = error?.status === 400;
    toggle(byId("delayed-search-error"), mine);
    say(byId("delayed-search-error"), mine ? error.message : "");
    byId("delayed-tasks").classList.toggle("delayed-stale", error !== null && !mine);
    if (error !== null && !mine) {
        trouble(error);
    }
}

function information() {
    const { page } = view;
    if (!page || !page.rows.length) {
        return "";
    }
    const from = page.number * table.page.len() + 1;
    const total = page.total === null ? (page.next === null ? ` of ${(from + page.rows.length - 1).toLocaleString()}` : "")
        : ` of ${page.isExact === false ? "about " : ""}${page.total.toLocaleString()}`;
    const lag = page.source === "audit" ? `, by the audit${page.lagMs > 1000 ? `, ${span(page.lagMs)} behind` : ""}` : "";
    return `${from.toLocaleString()} to ${(from + page.rows.length - 1).toLocaleString()}${total}${lag}`;
}

function nothing() {
    const asked = read(view.text);
    const box = byId("delayed-table").querySelector(".dataTables_empty");
    if (!box) {
        return;
    }
    if (view.failed) {
        show(box, h("p", null, "There was no answer, so nothing is known."));
    } else if (asked.id) {
        show(box, h("p", null, "No task with this id waits. It may have run, or been cancelled: "),
            h("a", { href: taskUrl(asked.id) }, "see its history"));
    } else if (view.text || view.state) {
        show(box, h("p", null, view.page?.next ? "Nothing found so far: go on with Next." : "No task matches."),
            h("button", { type: "button", class: "btn btn-sm btn-outline-secondary", click: () => choose("", "") }, "Show everything that waits"));
    } else {
        show(box, h("p", { class: "delayed-empty-title" }, "Nothing waits."),
            h("p", null, "Tasks that are scheduled for later appear here: ", h("code", null, "task.apply_delayed(countdown=60)")));
    }
}

/** Where the focus was, by what it was on: rows are made anew with each draw. */
function focused() {
    const { select, menu } = document.activeElement?.dataset || {};
    const selector = select ? `[data-select="${CSS.escape(select)}"]` : menu ? `[data-menu="${CSS.escape(menu)}"]` : null;
    return () => selector && document.querySelector(selector)?.focus();
}

let refocus = () => undefined;

/** Whether the table shows what waits no more. */
const isPast = () => [...byId("delayed-past").options].some((one) => one.value !== "" && one.value === view.state);

const table = new window.DataTable("#delayed-table", {
    serverSide: true,
    processing: true,
    ordering: false,
    autoWidth: false,
    searchDelay: 250,
    pagingType: "simple",
    pageLength: before.length || 15,
    displayStart: (before.number || 0) * (before.length || 15),
    lengthMenu: [15, 30, 50, 100],
    dom: "frt<'dt-footer'lip>",
    rowId: "task_id",
    columns: columns({ selection, find, act }),
    search: { search: view.text },
    language: {
        lengthMenu: "_MENU_",
        search: "",
        searchPlaceholder: "name, id, tag … or task:shop.* queue:mail tag:vip",
        emptyTable: "Nothing waits.",
        zeroRecords: "Nothing waits.",
        processing: "Looking…",
    },
    ajax: (request, draw) => load(request, draw),
    infoCallback: information,
    preDrawCallback: () => {
        refocus = focused();
    },
    drawCallback: () => {
        say(byId("delayed-table").querySelector("thead th.delayed-cell-due"), isPast() ? "Due" : "Due in");
        selection.drawn(view.rows);
        nothing();
        refocus();
    },
    initComplete: () => {
        byId("delayed-table_length").querySelector("select").setAttribute("aria-label", "Tasks per page");
        const box = byId("delayed-table_filter").querySelector("input");
        box.setAttribute("aria-label", "Search tasks");
        box.setAttribute("aria-describedby", "delayed-search-help");
        const head = byId("delayed-table").querySelector("thead th.delayed-cell-select");
        if (head) {
            show(head, h("input", { type: "checkbox", class: "form-check-input", id: "delayed-select-page", "aria-label": "Select this page",
                change: (event) => selection.selectPage(event.target.checked) }));
        }
        const menu = byId("delayed-table").querySelector("thead th.delayed-cell-menu");
        if (menu) {
            show(menu, h("span", { class: "visually-hidden" }, "Actions"));
        }
    },
});

function refresh(resetPage = false) {
    table.ajax.reload(null, resetPage);
}

// --- filters by state -----------------------------------------------------------------------

function choose(state, text) {
    view.state = state;
    marked();
    selection.clear();
    // what is typed counts, although DataTables waits a moment before it takes it over
    table.search(text ?? byId("delayed-table_filter").querySelector("input").value);
    table.page(0);
    refresh(true);
}

function marked() {
    let isPill = false;
    document.querySelectorAll(".task-state-filter[data-state]").forEach((pill) => {
        const isIt = pill.dataset.state === view.state;
        isPill ||= isIt;
        pill.classList.toggle("active", isIt);
        pill.setAttribute("aria-pressed", isIt);
    });
    const past = byId("delayed-past");
    past.value = isPill ? "" : view.state;
    past.classList.toggle("active", !isPill);
    // on a phone they are in a row that scrolls
    const row = past.parentElement;
    const active = row.querySelector(".active");
    const [room, it] = [row.getBoundingClientRect(), active.getBoundingClientRect()];
    row.scrollLeft += it.left - room.left - (room.width - it.width) / 2;
}

document.querySelectorAll("[data-state]").forEach((one) => one.addEventListener("click", (event) => {
    event.preventDefault();
    choose(one.dataset.state);
    if (one.closest(".metric-card")) {
        byId("delayed-tasks").scrollIntoView({ block: "start" });
    }
}));
byId("delayed-past").addEventListener("change", (event) => choose(event.target.value));

// --- by itself ------------------------------------------------------------------------------

const forecast = new Forecast();
let rounds = 0;
let forecastOf = 0;

/** Whether so many more or fewer wait that what is drawn is no more true. */
const hasMoved = (pending) => Math.abs(pending - forecastOf) > 0.1 * Math.max(pending, forecastOf);

/** Whether somebody is about to do something to a row. */
const isActing = () => isOpen() || document.querySelector("#delayed-table .dropdown-menu.show") !== null;

const isQuick = () => Object.keys(parameters()).every((one) => QUICK.includes(one))
    && !(view.state === "QUARANTINED" && view.page?.total > LARGE_QUARANTINE);

async function again() {
    if (document.hidden) {
        return;
    }
    const found = await look();
    if (found === null) {
        return;
    }
    // of those that were answered: after an outage all of the page is asked for at once
    rounds += 1;
    readOnly(found);
    if (rounds % FORECAST_EVERY === 1 || hasMoved(found.pending)) {
        forecastOf = found.pending;
        forecast.look();
    }
    if (!isActing() && (view.failed || (rounds > 1 && isQuick()))) {
        view.isQuiet = true;
        refresh();
    }
}

function readOnly(found) {
    toggle(byId("delayed-read-only"), found.read_only);
    say(byId("delayed-read-only-why"), found.read_only_why || "");
}

/** Ask, and show the pauses as they are then: what the server told last is good for half a second. */
async function pausing(asked) {
    if (await asked) {
        refresh();
        window.setTimeout(look, 600);
    }
}

marked();
if (!isReadOnly()) {
    wire();
    steer((gate) => h("button", { type: "button", class: "btn btn-sm btn-outline-secondary delayed-resume", "data-resume": gate.gate,
        click: () => pausing(resume(gate)) }, "Resume"));
    byId("delayed-pause").addEventListener("click", () => pausing(pause(view.text)));
}
startTicking();
again();
window.setInterval(again, EVERY_MS);
document.addEventListener("visibilitychange", again);
