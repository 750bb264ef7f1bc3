/* The page of periodic schedules: when each comes next; pause, resume, trigger. */

import { get, isReadOnly, post, taskUrl } from "./api.js";
import { ask, isOpen, wire } from "./dialog.js";
import { byId, h, show, toggle } from "./dom.js";
import { trouble } from "./overview.js";
import { missing } from "./rows.js";
import { countdown, learn, startTicking, time } from "./times.js";

const EVERY_MS = 5000;
const AHEAD = 8;
const isPaused = (one) => !one.enabled;

const VERBS = {
    trigger: { label: "Trigger", says: "Its task runs once now, with the schedule's arguments. When it comes next stays as it is." },
    pause: { label: "Pause", says: "No further occurrence is fired until somebody resumes it, over restarts and deployments. What falls into the pause is passed over." },
    resume: { label: "Resume", says: "It goes on with the first occurrence from now on. What fell into the pause is not made up for." },
};

function result(answer) {
    const id = answer.task_id;
    return h("div", { class: "alert alert-success mb-0", "data-outcome": answer.outcome },
        h("strong", null, answer.outcome), ` — ${answer.text}. `,
        id ? h("a", { href: taskUrl(id) }, "See the task") : null);
}

async function act(verb, one) {
    const words = VERBS[verb];
    const reason = verb === "pause" ? h("input", { class: "form-control", id: "delayed-reason", maxlength: 200, "data-autofocus": true,
        placeholder: "for whoever looks next" }) : null;
    const isChanged = await ask({
        title: `${words.label}: ${one.name}`,
        yes: words.label,
        body: [h("p", { class: reason ? "" : "mb-0" }, words.says),
            reason ? [h("label", { class: "form-label", for: "delayed-reason" }, "Reason (optional)"), reason] : null].flat(),
        work: async () => {
            const body = reason?.value.trim() ? { reason: reason.value.trim() } : {};
            return { answer: result(await post(`/api/delayed/schedules/${encodeURIComponent(one.name)}/${verb}`, body)) };
        },
    });
    if (isChanged) {
        look();
    }
}

/** Celery's words for times, without what is there for programmers only. */
const plain = (times) => times.replace(/^<crontab: (.*?)(?: \(m\/h\/dM\/MY\/d\))?>$/, "$1").replace(/^<freq: (.*)>$/, "every $1");

// --- cells ----------------------------------------------------------------------------------

function name(cell, one) {
    show(cell, h("strong", null, one.name), h("div", null, one.task),
        h("div", { class: "delayed-muted" }, one.source === "static" ? "from code" : "added at run time"));
}

function next(cell, one) {
    if (isPaused(one)) {
        show(cell, h("span", { class: "delayed-muted" }, "paused"), one.next_ms ? h("div", { class: "delayed-muted delayed-eta" }, "then ", time(one.next_ms)) : null);
        return;
    }
    if (!one.next_ms) {
        show(cell, missing());
        return;
    }
    show(cell, countdown(one.next_ms), h("div", { class: "delayed-muted delayed-eta" }, time(one.next_ms)),
        ahead(one));
}

/** The occurrences after that one; asked for when somebody wants to see them. */
function ahead(one) {
    const list = h("div");
    const box = h("details", { class: "delayed-ahead", toggle: async () => {
        if (!box.open || list.hasChildNodes()) {
            return;
        }
        try {
            const found = await get(`/api/delayed/schedules/${encodeURIComponent(one.name)}`, { n: AHEAD });
            const later = found.occurrences.map((each) => each.at_ms).filter((ms) => ms !== one.next_ms);
            show(list, found.occurrences_error || h("ol", null, later.map((ms) => h("li", null, time(ms)))));
        } catch (error) {
            show(list, error.message);
        }
    } }, h("summary", null, "and then"), list);
    return box;
}

function state(cell, one) {
    show(cell, h("span", { class: `badge text-bg-${isPaused(one) ? "warning" : "success"}` }, isPaused(one) ? "PAUSED" : "ACTIVE"),
        isPaused(one) && (one.paused_by || one.paused_ms) ? h("div", { class: "delayed-muted" }, one.paused_ms ? ["since ", time(one.paused_ms)] : null, one.paused_by ? ` by ${one.paused_by}` : null) : null,
        isPaused(one) && one.reason ? h("div", { class: "delayed-muted" }, h("q", null, one.reason)) : null);
}

function verbs(cell, one) {
    const able = ["trigger", isPaused(one) ? "resume" : "pause"];
    show(cell, h("div", { class: "btn-group btn-group-sm" }, able.map((verb) => h("button", { type: "button", class: "btn btn-outline-secondary",
        "data-verb": verb, "data-schedule": one.name, "aria-label": `${VERBS[verb].label} ${one.name}`, click: () => act(verb, one) }, VERBS[verb].label))));
}

const column = (title, className, fill, sort) => ({
    title, className, defaultContent: "", orderable: Boolean(sort),
    // what is sorted and searched is never shown: cells are elements
    data: (one, type) => (type === "display" ? "" : sort ? sort(one) : ""),
    createdCell: (cell, _, one) => {
        cell.dataset.title = title;
        fill(cell, one);
    },
});

const columns = [
    column("Schedule", "delayed-cell-task", name, (one) => `${one.name} ${one.task}`),
    column("Times", "delayed-cell-times", (cell, one) => show(cell, one.schedule ? plain(one.schedule) : missing()), (one) => one.schedule || ""),
    column("Next in", "delayed-cell-due", next, (one) => (isPaused(one) ? Number.MAX_SAFE_INTEGER : one.next_ms || 0)),
    column("Last fired", "delayed-cell-last", (cell, one) => show(cell, time(one.last_fired_ms)), (one) => one.last_fired_ms || 0),
    column("State", "delayed-cell-state", state, (one) => (isPaused(one) ? "paused" : "active")),
    ...(isReadOnly() ? [] : [column("Actions", "delayed-cell-verbs", verbs)]),
];

const table = new window.DataTable("#delayed-schedules", {
    columns,
    autoWidth: false,
    pagingType: "simple",
    pageLength: 30,
    lengthMenu: [15, 30, 50, 100],
    dom: "frt<'dt-footer'lip>",
    order: [[2, "asc"]],
    language: {
        lengthMenu: "_MENU_",
        search: "",
        searchPlaceholder: "name, task or state",
        info: "_START_ to _END_ of _TOTAL_ schedules",
        infoEmpty: "",
        infoFiltered: "(of _MAX_)",
        emptyTable: "No schedules: neither in beat_schedule nor added at run time.",
        zeroRecords: "No schedule matches.",
    },
    initComplete: () => {
        document.querySelector("#delayed-schedules_length select").setAttribute("aria-label", "Schedules per page");
        document.querySelector("#delayed-schedules_filter input").setAttribute("aria-label", "Search schedules");
    },
});

let drawn = "";

async function look() {
    const asked = Date.now();
    try {
        const found = await get("/api/delayed/schedules");
        learn(found.now_ms, asked);
        trouble(null);
        toggle(byId("delayed-read-only"), isReadOnly());
        const text = JSON.stringify(found.schedules);
        // what is open or focused stays, unless there is something new
        if (text !== drawn) {
            drawn = text;
            table.clear().rows.add(found.schedules).draw(false);
        }
    } catch (error) {
        trouble(error);
    }
}

if (!isReadOnly()) {
    wire();
}
startTicking();
look();
window.setInterval(() => {
    if (!document.hidden && !isOpen()) {
        look();
    }
}, EVERY_MS);
