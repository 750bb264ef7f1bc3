/* Pages by cursor: the server tells where to go on, and looks at a bounded part of the store at once. */

import { get } from "./api.js";
import { learn } from "./times.js";

/** Requests for one page; each looks at 10 000 entries where it has to read them. */
const MOST_REQUESTS = 50;

export class Pages {
    /** `before`: the {key, cursors} of pages that somebody comes back to. */
    constructor(progress, before = {}) {
        this.cursors = before.cursors || [null];
        this.key = before.key || "";
        this.progress = progress;
        this.aborter = null;
    }

    /** Page `number` (from 0) of `length` rows; {rows, next, total, isExact, lagMs, number}. */
    async page(number, length, parameters) {
        const key = JSON.stringify([length, parameters]);
        if (key !== this.key) {
            this.key = key;
            this.cursors = [null];
        }
        const wanted = number < this.cursors.length ? number : this.cursors.length - 1;
        this.aborter?.abort();
        const aborter = this.aborter = new AbortController();
        const rows = [];
        let cursor = this.cursors[wanted];
        let answer;
        for (let requests = 1; ; requests += 1) {
            const asked = Date.now();
            answer = await get("/api/delayed", { ...parameters, limit: length - rows.length, cursor }, aborter.signal);
            learn(answer.now_ms, asked);
            rows.push(...answer.entries);
            cursor = answer.next;
            if (cursor === null || rows.length >= length || requests === MOST_REQUESTS) {
                break;
            }
            this.progress(requests);
        }
        this.cursors.length = wanted + 1;
        if (cursor !== null) {
            this.cursors.push(cursor);
        }
        return { rows, next: cursor, total: answer.total, isExact: answer.total_is_exact, lagMs: answer.audit_lag_ms ?? answer.lag?.audit_lag_ms ?? null,
            source: answer.source, number: wanted };
    }
}
