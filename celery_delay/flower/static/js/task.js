/* The page of one task: what is known of it, and its history. */

import { act } from "./actions.js";
import { get, isReadOnly, url } from "./api.js";
import { wire, isOpen } from "./dialog.js";
import { byId, h, say, show, toggle } from "./dom.js";
import { trouble } from "./overview.js";
import { missing } from "./rows.js";
import { term } from "./search.js";
import { countdown, learn, span, startTicking, time } from "./times.js";
import { VERBS, badge, verbsFor } from "./words.js";

const EVERY_MS = 2000;
/** What nothing follows. */
const ENDED = ["SUCCEEDED", "FAILED", "REVOKED", "REJECTED", "CANCELLED", "EXPIRED", "LOST"];

const id = byId("delayed-task").dataset.taskId;

// --- what is known --------------------------------------------------------------------------

function row(name, ...value) {
    const isKnown = value.flat(Infinity).some((one) => one !== null && one !== undefined && one !== "");
    return h("div", { class: "detail-row" }, h("dt", null, name), h("dd", null, isKnown ? value : missing()));
}

const code = (text) => (text === null || text === undefined ? null : h("pre", { class: "detail-code" }, h("code", null, text)));
const link = (field, value) => (value ? h("a", { href: url("/delayed", { q: term(field, value) }) }, value) : null);

function due(entry) {
    if (entry.eta_ms === null || entry.eta_ms === undefined) {
        return [];
    }
    const isWaiting = entry.state === "SCHEDULED";
    return [time(entry.eta_ms), isWaiting ? [h("span", { class: "delayed-muted" }, " · "), countdown(entry.eta_ms)] : null];
}

function facts(entry) {
    show(byId("delayed-facts"),
        row("Name", link("task", entry.task)),
        row("Id", h("code", { class: "text-body-secondary" }, entry.task_id || id)),
        row("State", h("span", { class: badge(entry.state) }, entry.state),
            entry.gate ? h("span", { class: "delayed-muted" }, ` waits: ${entry.gate}`) : null,
            entry.reason ? h("span", { class: "delayed-error" }, ` ${entry.reason}`) : null),
        row("Due", due(entry)),
        row("Queue", link("queue", entry.queue)),
        entry.namespace ? row("Namespace", link("namespace", entry.namespace)) : null,
        entry.tags?.length ? row("Tags", entry.tags.flatMap((tag, index) => [index ? ", " : null, link("tag", tag)])) : null,
        entry.unique_key ? row("Unique key", h("code", null, entry.unique_key)) : null,
        entry.expires_ms ? row("Expires", time(entry.expires_ms)) : null,
        row("Arguments", code(entry.args)),
        row("Keyword arguments", code(entry.kwargs)),
        entry.why ? row("Reason", entry.why) : null,
        entry.error ? row("Error", code(entry.error)) : null);
}

/** What the history alone tells of a task that waits no more. */
function told({ history, runs, result }) {
    const last = history.at(-1) || {};
    const find = (name) => history.map((one) => one[name] ?? one.data?.[name]).filter((one) => one !== null && one !== undefined).at(-1);
    return { task_id: id, state: last.state ?? result, task: find("task") ?? find("name"), queue: find("queue"), eta_ms: find("eta_ms"), run: last.run,
        args: find("args"), kwargs: find("kwargs"), namespace: find("namespace"), tags: find("tags"), ...why(last, runs) };
}

/** Of what went wrong the error; of what somebody has ended his reason, which the audit keeps in the same place. */
function why(last, runs) {
    const text = runs?.at(-1)?.error ?? last.data?.error;
    return last.data?.reason ? { why: last.data.reason } : { error: text };
}

function actions(entry) {
    const verbs = entry && !isReadOnly() ? verbsFor(entry.state) : [];
    show(byId("delayed-task-actions"), verbs.map((verb) => h("button", { type: "button", "data-verb": verb,
        class: `btn ${VERBS[verb].danger ? "btn-outline-danger" : "btn-outline-secondary"}`,
        click: async () => {
            if (await act(verb, [entry])) {
                look();
            }
        } }, VERBS[verb].label)));
}

// --- its history ----------------------------------------------------------------------------

/** What stands elsewhere on the page. */
const KNOWN = ["task", "name", "queue", "args", "kwargs", "namespace", "tags", "lag_ms", "worker", "eta_ms"];

function more(data) {
    const rest = Object.entries(data || {}).filter(([name, value]) => !KNOWN.includes(name) && value !== id && value !== null && value !== "");
    return rest.length ? h("dl", { class: "delayed-more-facts" }, rest.map(([name, value]) => h("div", null,
        h("dt", null, name.replaceAll("_", " ")), h("dd", null, typeof value === "string" ? value : JSON.stringify(value))))) : null;
}

function step(event, before) {
    const since = before && event.at_ms - before.at_ms;
    return h("li", { class: "delayed-step", "data-event": event.state },
        h("span", { class: badge(event.state) }, event.state),
        h("div", { class: "delayed-step-body" },
            h("div", null, time(event.at_ms, "YYYY-MM-DD HH:mm:ss.SSS"),
                before ? h("span", { class: "delayed-muted" }, ` · ${since < 0 ? "−" : "+"}${span(since)}`) : null,
                event.lag_ms !== null && event.lag_ms !== undefined ? h("span", { class: `delayed-lag${event.lag_ms > 1000 ? " delayed-late" : ""}` }, ` · lag ${span(event.lag_ms)}`) : null),
            event.eta_ms && ["SCHEDULED", "HELD"].includes(event.state) ? h("div", { class: "delayed-muted" }, "due ", time(event.eta_ms)) : null,
            event.worker ? h("div", { class: "delayed-muted" }, `on ${event.worker}`) : null,
            more(event.data)));
}

function history({ history: events, audited, audit_error: why, audit_lag_ms: lagMs }) {
    const holder = byId("delayed-history");
    say(byId("delayed-audit-lag"), lagMs > 1000 ? `the audit is ${span(lagMs)} behind` : "");
    if (!events?.length) {
        show(holder, h("p", { class: "delayed-empty" }, why || (audited ? "The audit has not heard of this task yet." : "Histories are told by the audit, and this project keeps none: set delay_database_url.")));
        return;
    }
    const runs = Map.groupBy ? Map.groupBy(events, (one) => one.run) : grouped(events);
    show(holder, [...runs].map(([run, steps], index) => h("section", null,
        runs.size > 1 ? h("h3", { class: "delayed-run", title: `run ${run}` }, `Run ${index + 1}${wasRetried(events, steps[0].run) ? ", a retry" : ""}`) : null,
        h("ol", { class: "delayed-history" }, steps.map((one, place) => step(one, steps[place - 1]))))));
}

/** Whether the run was begun by a retry: another one may also be sent again, or bear an id that was used before. */
const wasRetried = (events, run) => events.findLast((one) => one.run < run)?.state === "RETRIED";

function grouped(events) {
    const found = new Map();
    for (const one of events) {
        found.set(one.run, [...(found.get(one.run) || []), one]);
    }
    return found;
}

// --- the whole ------------------------------------------------------------------------------

let isOver = false;
let drawn = "";

async function look() {
    const asked = Date.now();
    try {
        const found = await get(`/api/delayed/${encodeURIComponent(id)}`);
        learn(found.now_ms, asked);
        trouble(null);
        const events = found.history || [];
        const entry = found.entry || told(found);
        isOver = !found.entry && ENDED.includes(events.at(-1)?.state);
        toggle(byId("delayed-known"), true);
        toggle(byId("delayed-unknown"), false);
        const text = JSON.stringify([found.entry, found.result, events]);
        if (text !== drawn) {
            drawn = text;
            document.title = `${entry.task || "Task"} ${id.slice(0, 8)} · Delayed · Flower`;
            facts(entry);
            actions(found.entry);
            history(found);
        }
    } catch (error) {
        if (error.status === 404) {
            trouble(null);
            toggle(byId("delayed-known"), false);
            toggle(byId("delayed-unknown"), true);
        } else {
            trouble(error);
        }
    }
}

if (!isReadOnly()) {
    wire();
}
startTicking();
look();
window.setInterval(() => {
    if (!document.hidden && !isOpen() && !isOver) {
        look();
    }
}, EVERY_MS);
