/* The rows that are ticked, over pages, and the bar that acts on them. */

import { byId, h, say, show, toggle } from "./dom.js";
import { VERBS, tasks, verbsFor } from "./words.js";

export class Selection {
    /** `act(verb, rows)`, `actOnAll(verb)`; `all()` says whether, and how, all that match can be meant. */
    constructor({ act, actOnAll, all }) {
        this.rows = new Map();
        this.all = all;
        this.wholeSearch = false;
        show(byId("delayed-selected-verbs"), Object.entries(VERBS).map(([verb, words]) => h("button", {
            type: "button", class: `btn btn-sm ${words.danger ? "btn-outline-danger" : "btn-outline-secondary"}`, "data-many": verb,
            click: () => (this.wholeSearch ? actOnAll(verb) : act(verb, this.fit(verb))),
        }, words.label)));
        byId("delayed-selected-none").addEventListener("click", () => this.clear());
        byId("delayed-selected-all").addEventListener("click", () => {
            this.wholeSearch = true;
            this.update();
        });
    }

    has(id) {
        return this.rows.has(id);
    }

    set(row, isSelected) {
        this.wholeSearch = false;
        if (isSelected) {
            this.rows.set(row.task_id, row);
        } else {
            this.rows.delete(row.task_id);
        }
        this.update();
    }

    clear() {
        this.rows.clear();
        this.wholeSearch = false;
        this.update();
    }

    /** The selected rows that a verb is for. */
    fit(verb) {
        return [...this.rows.values()].filter((row) => verbsFor(row.state).includes(verb));
    }

    /** The page has been drawn with these rows: tick them, and know what they are by now. */
    drawn(rows) {
        for (const row of rows) {
            if (this.rows.has(row.task_id)) {
                this.rows.set(row.task_id, row);
            }
        }
        this.shown = rows;
        this.update();
    }

    selectPage(isSelected) {
        for (const row of this.shown || []) {
            if (verbsFor(row.state).length) {
                this.set(row, isSelected);
            }
        }
    }

    update() {
        const size = this.rows.size;
        const whole = this.all();
        toggle(byId("delayed-selected"), size > 0);
        say(byId("delayed-selected-count"), this.wholeSearch ? `All that match: ${whole}` : `${tasks(size)} selected`);
        toggle(byId("delayed-selected-all"), Boolean(whole) && !this.wholeSearch && size > 0);
        document.querySelectorAll("[data-many]").forEach((button) => {
            const fit = this.wholeSearch ? 1 : this.fit(button.dataset.many).length;
            toggle(button, fit > 0);
            say(button, VERBS[button.dataset.many].label + (this.wholeSearch || fit === size ? "" : ` (${fit})`));
        });
        document.querySelectorAll("[data-select]").forEach((box) => {
            box.checked = this.wholeSearch || this.has(box.dataset.select);
            box.closest("tr").classList.toggle("delayed-row-selected", box.checked);
        });
        const boxes = [...document.querySelectorAll("[data-select]")];
        const top = byId("delayed-select-page");
        if (top) {
            top.checked = boxes.length > 0 && boxes.every((box) => box.checked);
            top.indeterminate = !top.checked && boxes.some((box) => box.checked);
            top.disabled = boxes.length === 0;
        }
    }
}
