/* What Flower's server is asked and told. */

import { byId } from "./dom.js";

const meta = (name) => document.querySelector(`meta[name="${name}"]`)?.content || "";

/** An answer that is none: `text` says what to do; `status` is 0 where nobody answered. */
export class Refused extends Error {
    constructor(status, text) {
        super(text);
        this.status = status;
    }
}

function prefix() {
    const given = (byId("url_prefix")?.value || "").replace(/^\/+|\/+$/g, "");
    return given ? `/${given}` : "";
}

/** The address of a path of ours, below Flower's --url-prefix. */
export function url(path, parameters) {
    const query = new URLSearchParams();
    for (const [name, value] of Object.entries(parameters || {})) {
        for (const one of [value].flat()) {
            if (one !== "" && one !== null && one !== undefined) {
                query.append(name, one);
            }
        }
    }
    const text = query.toString();
    return prefix() + path + (text ? `?${text}` : "");
}

export const taskUrl = (id) => url(`/delayed/task/${encodeURIComponent(id)}`);

async function ask(address, options) {
    let answer;
    try {
        answer = await fetch(address, { credentials: "same-origin", cache: "no-store", ...options });
    } catch (error) {
        if (error.name === "AbortError") {
            throw error;
        }
        throw new Refused(0, "Flower does not answer. Is its process running, and the network there?");
    }
    const body = await answer.json().catch(() => null);
    if (answer.ok && body) {
        renew(body.csrf);
        return body;
    }
    if (answer.status === 401 || answer.redirected) {
        throw new Refused(401, "You are not logged in any more. Reload the page to log in.");
    }
    throw new Refused(answer.status, body?.error || `Flower answered with status ${answer.status}.`);
}

/** A page that stays open for longer than its token is good for gets a new one with the overview. */
function renew(token) {
    if (token) {
        document.querySelector('meta[name="delayed-csrf"]').content = token;
    }
}

const proof = () => ({ "X-Delayed-CSRF": meta("delayed-csrf") });

/** GET; the document.  Raises Refused, or AbortError by `signal`. */
export function get(path, parameters, signal) {
    return ask(url(path, parameters), { signal, headers: proof() });
}

/** POST a JSON body; the document.  Raises Refused. */
export function post(path, body) {
    const headers = { "Content-Type": "application/json", ...proof() };
    return ask(url(path), { method: "POST", headers, body: JSON.stringify(body || {}) });
}

export const isReadOnly = () => meta("delayed-read-only") !== "";
export const timezone = () => meta("delayed-timezone") || "UTC";
