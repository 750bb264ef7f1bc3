/* The upper part of the page: numbers, who leads, what is paused, what is due when, how late it was. */

import { get, timezone } from "./api.js";
import { chart } from "./chart.js";
import { byId, h, say, show, toggle } from "./dom.js";
import { ago, instant, learn, span, time } from "./times.js";
import { tasks } from "./words.js";

const SPANS = {
    hour: { words: "in the next hour", label: "HH:mm", title: "MMM D, HH:mm" },
    day: { words: "in the next 24 hours", label: "HH:mm", title: "MMM D, HH:mm" },
    month: { words: "in the next 30 days", label: "MMM D", title: "ddd, MMM D" },
};
const NUMBERS = ["pending", "overdue", "held", "quarantined"];

const BACKLOG = { gated: "by a pause or limit", blocked: "set aside", claimed: "being published" };

const number = (value) => (value === null || value === undefined ? "—" : value.toLocaleString());

// --- cards ----------------------------------------------------------------------------------

function cards(document) {
    for (const name of NUMBERS) {
        say(byId(`delayed-${name}`), number(document[name]));
    }
    for (const name of ["overdue", "quarantined"]) {
        byId(`delayed-card-${name}`).classList.toggle("metric-card-danger", document[name] > 0);
    }
    byId("delayed-card-held").classList.toggle("delayed-card-warning", document.held > 0);
    const parts = Object.entries(BACKLOG).filter(([name]) => document[name]);
    say(byId("delayed-backlog"), number(parts.reduce((sum, [name]) => sum + document[name], 0)));
    say(byId("delayed-backlog-parts"), parts.map(([name, words]) => `${number(document[name])} ${words}`).join(", ") || "due, and kept back");
}

// --- who leads ------------------------------------------------------------------------------

const TROUBLED = {
    nobody: ["Nobody leads", "start a beat: celery -A proj beat -S celery_delay.Scheduler"],
    gone: ["Leader gone", "it has stopped, and nobody has taken over: start a beat"],
    stuck: ["Leader stuck", "it does not look for due tasks: see its log"],
};
const BY_NEED = ["nobody", "gone", "stuck", "leading"];

/** The shard that needs most attention; mostly there is but one. */
const worst = (shards) => [...shards].sort((a, b) => BY_NEED.indexOf(a.status) - BY_NEED.indexOf(b.status))[0];

/** `host:pid` of a holder, which goes on with what makes it unique. */
const holderName = (holder) => holder.split(":").slice(0, 2).join(":");

function leader({ shards, beats }) {
    const one = worst(shards);
    const isLed = one.status === "leading";
    const [title, remedy] = TROUBLED[one.status] || [];
    const holders = [...new Set(shards.map((shard) => shard.holder).filter(Boolean))];
    const name = byId("delayed-leader");
    say(name, isLed ? holders.map(holderName).join(", ") : title);
    name.title = holders.join(", ");
    byId("delayed-card-leader").classList.toggle("metric-card-danger", !isLed);
    byId("delayed-card-leader").classList.toggle("metric-card-success", isLed);
    const which = shards.length > 1 ? `shard ${one.shard} · ` : "";
    show(byId("delayed-leader-facts"), which, one.term ? `term ${one.term}` : null,
        one.progress_ms ? [one.term ? " · last tick " : "last tick ", ago(one.progress_ms)] : null, isLed ? null : h("div", null, remedy));
    const names = beats?.filter((each) => !holders.includes(each.holder)).map((each) => holderName(each.holder));
    show(byId("delayed-standbys"), !names ? "standbys cannot be asked"
        : names.length ? `${names.length} ${names.length === 1 ? "standby" : "standbys"}: ${names.join(", ")}`
            : isLed ? "no standby: should it stop, nobody takes over" : "no standby");
}

// --- pauses and limits ----------------------------------------------------------------------

const PAUSES = ["paused", "releasing"];
const GATES = {
    paused: "Paused",
    releasing: "Coming back",
    limited: "Rate limit reached",
    full: "Queue full",
};

/** `task:X` as people say it; `rate:` and `full:` say in their status what they are. */
const gateName = (gate) => (gate === "all" ? "everything" : gate.replace(/^(rate|full):/, ""));

/** What `change(gate)` makes a button for; none where nothing can be changed. */
let button = () => null;

/** Have people end pauses: `make` returns the button of a gate. */
export function steer(make) {
    button = make;
}

function gate(one) {
    return h("li", { "data-gate": one.gate }, h("strong", null, `${GATES[one.status] || one.status}: `, gateName(one.gate)),
        one.since_ms ? [" since ", time(one.since_ms)] : null, one.by ? ` by ${one.by}` : null,
        one.reason ? [": ", h("q", null, one.reason)] : null,
        one.waiting ? ` · ${tasks(one.waiting)} ${one.waiting === 1 ? "waits" : "wait"}` : null,
        PAUSES.includes(one.status) ? button(one) : null);
}

let drawn = "";

/** Pauses, and limits that keep something back now. */
function gates({ gates: found, broker_failure: failure }) {
    const shown = found.filter((one) => PAUSES.includes(one.status) || one.waiting > 0);
    toggle(byId("delayed-pauses"), shown.length > 0 || Boolean(failure));
    // what is focused stays, unless there is something new
    const text = JSON.stringify([shown, failure]);
    if (text === drawn) {
        return;
    }
    drawn = text;
    show(byId("delayed-pauses-list"), failure ? h("li", null, h("strong", null, "The broker takes nothing: "), failure) : null, shown.map(gate));
}

// --- lag ------------------------------------------------------------------------------------

function lag({ past, past_error: why }) {
    const holder = byId("delayed-lag");
    const buckets = past?.lag_histogram || [];
    const sum = buckets.reduce((total, one) => total + one.count, 0);
    const { lag: found } = past || {};
    say(byId("delayed-lag-sum"), found ? `p50 ${span(found.p50)} · p99 ${span(found.p99)} · max ${span(found.max)}` : "");
    if (!sum) {
        show(holder, h("p", { class: "delayed-empty" }, past
            ? `Nothing was handed off since ${instant(past.since_ms, "HH:mm")}.`
            : why || "Lags are told by the audit, and this project keeps none: set delay_database_url."));
        return;
    }
    let from = 0;
    const last = buckets.map((one) => one.count > 0).lastIndexOf(true);
    const bars = buckets.slice(0, Math.max(last + 1, 6)).map(({ le_ms: le, count }) => {
        const bar = { value: count, label: le === null ? `> ${short(from)}` : `≤ ${short(le)}`,
            title: le === null ? `later than ${span(from)}` : `${short(from)} to ${short(le)}`, kind: le === null || le > 1000 ? "delayed-bar-bad" : "" };
        from = le ?? from;
        return bar;
    });
    const words = `${sum.toLocaleString()} hand-offs since ${instant(past.since_ms, "HH:mm")}`;
    chart(holder, bars, { heading: "Lag", caption: `${words}, by their lag`, summary: `${words}: bars by lag` });
}

const short = (ms) => (ms < 1000 ? `${ms} ms` : ms < 60000 ? `${ms / 1000} s` : `${ms / 60000} min`);

// --- what is due ----------------------------------------------------------------------------

export class Forecast {
    constructor() {
        this.span = "hour";
        document.querySelectorAll("[data-span]").forEach((button) => button.addEventListener("click", () => {
            this.span = button.dataset.span;
            document.querySelectorAll("[data-span]").forEach((one) => {
                one.classList.toggle("active", one === button);
                one.setAttribute("aria-pressed", one === button);
            });
            this.look();
        }));
    }

    async look() {
        const { span: wanted } = this;
        const words = SPANS[wanted];
        try {
            const found = await get("/api/delayed/forecast", { span: wanted, tz: timezone() });
            if (wanted === this.span) {
                this.draw(found, words);
            }
        } catch (error) {
            say(byId("delayed-due-sum"), "");
            show(byId("delayed-due"), h("p", { class: "delayed-empty" }, error.message));
        }
    }

    draw({ buckets, overdue, later }, words) {
        const sum = buckets.reduce((total, one) => total + one.count, 0);
        say(byId("delayed-due-sum"), [tasks(sum), overdue ? `${overdue.toLocaleString()} due now` : "", later ? `${later.toLocaleString()} later` : ""]
            .filter(Boolean).join(" · "));
        if (!sum) {
            show(byId("delayed-due"), h("p", { class: "delayed-empty" }, `Nothing is due ${words.words}.`));
            return;
        }
        const bars = buckets.map((one) => ({ value: one.count, label: instant(one.from_ms, words.label), title: `from ${instant(one.from_ms, words.title)}` }));
        chart(byId("delayed-due"), bars, { heading: "From", caption: `Tasks due ${words.words}`,
            summary: `${tasks(sum)} due ${words.words}: bars by time` });
    }
}

// --- the whole ------------------------------------------------------------------------------

/** Say that Redis, or Flower, does not answer, and what to do; `null`: all is well. */
export function trouble(error) {
    const box = byId("delayed-trouble");
    toggle(box, error !== null);
    byId("delayed-live").classList.toggle("status-dot-live", error === null);
    byId("delayed-live").classList.toggle("status-dot-error", error !== null);
    say(byId("delayed-refreshed"), error === null ? `Updated ${instant(Date.now(), "HH:mm:ss")}` : "Not updated");
    if (error !== null) {
        show(byId("delayed-trouble-text"), h("p", { class: "mb-1" }, error.message),
            error.status === 503 ? h("p", { class: "mb-0" }, "What is shown is what was known last. ",
                h("code", null, "celery -A proj delay doctor"), " says what is wrong. This page goes on by itself when there is an answer.") : null);
    }
}

/** Ask for the overview and show it; true if there was an answer. */
export async function look() {
    const asked = Date.now();
    try {
        const found = await get("/api/delayed/overview");
        learn(found.now_ms, asked);
        cards(found);
        leader(found);
        gates(found);
        lag(found);
        trouble(null);
        return found;
    } catch (error) {
        trouble(error);
        return null;
    }
}
