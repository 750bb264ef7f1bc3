/* Instants and spans for people.  Instants are milliseconds since 1970 by Redis' clock; how far the
   browser's is off is learnt from each answer. */

import { timezone } from "./api.js";
import { h, say } from "./dom.js";

let offset = 0;

/** Redis' clock, about. */
export const now = () => Date.now() + offset;

/** Learn the clock from an answer that was asked for at `asked` (by Date.now()). */
export function learn(nowMs, asked) {
    if (typeof nowMs === "number") {
        offset = nowMs - (asked + Date.now()) / 2;
    }
}

const two = (number) => String(number).padStart(2, "0");

/** `450 ms`, `2.5 s`, `12 s`, `5m 03s`, `2h 05m 03s`, `3d 02h 05m`. */
export function span(ms) {
    const size = Math.abs(ms);
    if (size < 1000) {
        return `${Math.round(size)} ms`;
    }
    if (size < 10000) {
        return `${(Math.floor(size / 100) / 10).toFixed(1)} s`;
    }
    return whole(size);
}

/** The same in whole seconds, as a clock ticks. */
export function whole(ms) {
    const seconds = Math.floor(Math.abs(ms) / 1000);
    const [days, hours, minutes] = [
        Math.floor(seconds / 86400), Math.floor(seconds / 3600) % 24, Math.floor(seconds / 60) % 60];
    if (days) {
        return `${days.toLocaleString()}d ${two(hours)}h ${two(minutes)}m`;
    }
    if (hours) {
        return `${hours}h ${two(minutes)}m ${two(seconds % 60)}s`;
    }
    return minutes ? `${minutes}m ${two(seconds % 60)}s` : `${seconds} s`;
}

/** The instant in the time zone of the Celery app, as Flower writes it. */
export function instant(ms, format = "YYYY-MM-DD HH:mm:ss") {
    return window.moment(ms).tz(timezone()).format(format);
}

/** A `<time>` of an instant; a dash where there is none. */
export function time(ms, format) {
    if (ms === null || ms === undefined) {
        return h("span", { class: "value-missing" }, "—");
    }
    const iso = new Date(ms).toISOString();
    return h("time", { datetime: iso, title: `${instant(ms, "YYYY-MM-DD HH:mm:ss.SSS")} ${timezone()}` },
        instant(ms, format));
}

function countdownText(dueMs) {
    const left = dueMs - now();
    if (left > 0) {
        return whole(left + 999);
    }
    return left > -1000 ? "now" : `${whole(left)} late`;
}

/** An element that counts down to an instant; `late: false` where being past is no fault. */
export function countdown(dueMs, { late = true } = {}) {
    return update(h("span", { class: "delayed-countdown", "data-due-ms": dueMs, "data-late": late ? "1" : null }));
}

/** An element that says how long ago an instant was. */
export function ago(ms) {
    return update(h("span", { class: "delayed-ago", "data-since-ms": ms }));
}

function update(element) {
    const { dueMs, sinceMs, late } = element.dataset;
    if (sinceMs !== undefined) {
        say(element, `${span(Math.max(0, now() - Number(sinceMs)))} ago`);
    } else {
        const text = countdownText(Number(dueMs));
        say(element, late || !text.endsWith(" late") ? text : text.replace(/ late$/, " ago"));
        element.classList.toggle("delayed-late", Boolean(late) && text.endsWith(" late"));
    }
    return element;
}

/** Let all countdowns tick, each second. */
export function startTicking() {
    window.setInterval(() => {
        if (!document.hidden) {
            document.querySelectorAll("[data-due-ms], [data-since-ms]").forEach(update);
        }
    }, 1000);
}
