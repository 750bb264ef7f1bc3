/* What can be done to tasks: each verb asks first, says what will happen, and shows what became of it. */

import { post, timezone } from "./api.js";
import { ask } from "./dialog.js";
import { h } from "./dom.js";
import { duration, reason } from "./fields.js";
import { instant, now, time } from "./times.js";
import { VERBS, outcome, tasks } from "./words.js";

/** Named at most in a question; the rest is a number. */
const NAMED = 5;
/** Tasks that one request changes at most. */
const MOST = 10000;

const api = (id, verb) => `/api/delayed/${encodeURIComponent(id)}/${verb}`;

function named(rows) {
    const more = rows.length - NAMED;
    return h("ul", { class: "delayed-named" },
        rows.slice(0, NAMED).map((row) => h("li", null, h("strong", null, row.task || "?"), " ",
            h("code", { class: "text-body-secondary" }, row.task_id), row.eta_ms ? h("span", { class: "delayed-muted" }, " due ", time(row.eta_ms)) : null)),
        more > 0 ? h("li", { class: "delayed-muted" }, `and ${tasks(more)} more`) : null);
}

// --- the fields -----------------------------------------------------------------------------

/** The three ways to say a new due time; the fields of the ways that are not chosen are disabled. */
function when() {
    const later = duration({ amount: "1", unit: "hours", label: "How much later than now", id: "delayed-in", min: "0", "data-autofocus": true });
    const shift = duration({ amount: "30", unit: "minutes", label: "By how much; negative: earlier", id: "delayed-shift" });
    const at = h("input", { class: "form-control", type: "datetime-local", step: "1", required: true, id: "delayed-at",
        value: instant(now() + 3600000, "YYYY-MM-DDTHH:mm:ss"), "aria-label": `Due time, ${timezone()}` });
    const ways = {
        in: { label: "In", fields: later.elements, value: () => ({ countdown: later.seconds() }) },
        at: { label: "At", fields: [at], note: `in the time zone of the app, ${timezone()}`, value: () => ({ eta: window.moment.tz(at.value, timezone()).toISOString() }) },
        by: { label: "Later by", fields: shift.elements, value: () => ({ by: shift.seconds() }) },
    };
    let chosen = "in";
    function choose(name) {
        chosen = name;
        for (const [one, { fields }] of Object.entries(ways)) {
            fields.forEach((field) => {
                field.disabled = one !== name;
            });
        }
    }
    const rows = Object.entries(ways).map(([name, { label, fields, note }]) => h("div", { class: "delayed-when-row" },
        h("input", { class: "form-check-input", type: "radio", name: "delayed-when", id: `delayed-when-${name}`, checked: name === chosen,
            change: () => {
                choose(name);
                fields[0].focus();
            } }),
        h("label", { class: "form-check-label", for: `delayed-when-${name}` }, label), fields,
        note ? h("span", { class: "delayed-muted delayed-when-note" }, note) : null));
    choose(chosen);
    return { element: h("fieldset", { class: "delayed-when" }, h("legend", { class: "visually-hidden" }, "New due time"), rows),
        value: () => ways[chosen].value() };
}

// --- answers --------------------------------------------------------------------------------

function one(name, text) {
    const { colour, text: meaning } = outcome(name);
    return h("div", { class: `alert alert-${colour} mb-0`, "data-outcome": name },
        h("strong", null, name.replaceAll("_", " ")), ` — ${text || meaning}.`.replace("..", "."));
}

function several(answer) {
    const found = Object.entries(answer.outcomes || {}).sort(([, a], [, b]) => b - a);
    if (!found.length) {
        return h("div", { class: "alert alert-secondary mb-0" }, "No task fits any more: nothing was done.");
    }
    return h("ul", { class: "delayed-outcomes" }, found.map(([name, count]) => {
        const { colour, text } = outcome(name);
        const failed = answer.failed?.[name] || [];
        return h("li", { class: `alert alert-${colour}`, "data-outcome": name },
            h("strong", null, `${count.toLocaleString()} ${name.replaceAll("_", " ")}`), ` — ${text}.`,
            failed.length ? h("div", { class: "delayed-failed" }, failed.slice(0, 10).map((id) => h("code", null, id))) : null);
    }));
}

// --- the question ---------------------------------------------------------------------------

function question(verb, count, rows) {
    const words = VERBS[verb];
    const fields = [verb === "reschedule" ? when() : null, reason()].filter(Boolean);
    return {
        body: [h("p", null, words.says(count)), fields.map((one) => one.element), rows ? named(rows) : null,
            words.done !== "RELEASED" ? h("p", { class: "delayed-muted mb-0" },
                "What has been handed to its queue meanwhile is not touched: the answer is then TOO LATE.") : null],
        yes: count === 1 ? words.label : `${words.label} ${count.toLocaleString()}`,
        value: () => Object.assign({}, ...fields.map((one) => one.value())),
    };
}

/** What the asker knows of a task makes the answer for one that has left the store more exact. */
const known = (verb, row) => (verb === "cancel" ? { run: row.run ?? 0, eta_ms: row.eta_ms ?? 0 } : {});

/** Do `verb` to these rows, after asking; resolves to whether something may have changed. */
export function act(verb, rows) {
    const words = VERBS[verb];
    const asked = question(verb, rows.length, rows);
    const work = async () => {
        if (rows.length === 1) {
            const [row] = rows;
            const answer = await post(api(row.task_id, verb), { ...known(verb, row), ...asked.value() });
            return { answer: one(answer.outcome, answer.text) };
        }
        const ids = rows.map((row) => row.task_id);
        return { answer: several(await post(`/api/delayed/many/${verb}`, { ids, ...asked.value() })) };
    };
    return ask({ title: `${words.label}: ${tasks(rows.length)}`, body: asked.body, yes: asked.yes, danger: words.danger, work });
}

/** Do `verb` to all that `filter` means: counted first, and refused if there are more by then. */
export function actOnAll(verb, filter, description) {
    const words = VERBS[verb];
    const path = `/api/delayed/many/${verb}`;
    const which = { filter, everything: Object.keys(filter).length === 0 };
    const prepare = async () => {
        const { matched, sample } = await post(path, { ...which, dry_run: true, ...(verb === "reschedule" ? { countdown: 0 } : {}) });
        if (!matched) {
            return { body: h("p", { class: "mb-0" }, `No task that this can be done to matches ${description}.`) };
        }
        if (matched > MOST) {
            return { body: h("p", { class: "mb-0" }, `More than ${MOST.toLocaleString()} tasks match ${description}. Narrow the search, or use the command line: `,
                h("code", null, `celery -A proj delay ${verb === "resend" ? "release" : verb}`)) };
        }
        const asked = question(verb, matched, sample.slice(0, matched));
        const more = matched - sample.length;
        return {
            ...asked,
            body: [h("div", { class: "alert alert-warning" }, h("strong", null, `All ${tasks(matched)}`), ` that match ${description}, on all pages.`),
                asked.body, more > 0 && sample.length ? h("p", { class: "delayed-muted mb-0" }, `Shown are the first of ${tasks(matched)}.`) : null],
            work: async () => ({ answer: several(await post(path, { ...which, expected: matched, ...asked.value() })) }),
        };
    };
    return ask({ title: `${words.label}: all that match`, yes: words.label, danger: words.danger, prepare });
}
