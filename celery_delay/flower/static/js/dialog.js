/* The one dialog: says what will happen, asks, does it, and shows the answers. */

import { byId, h, say, show, toggle } from "./dom.js";

let finished = null;
let confirm = null;
let isBusy = false;

const parts = () => ({
    box: byId("delayed-dialog"),
    title: byId("delayed-dialog-title"),
    body: byId("delayed-dialog-body"),
    yes: byId("delayed-dialog-yes"),
    no: byId("delayed-dialog-no"),
});

const modal = () => window.bootstrap.Modal.getOrCreateInstance(parts().box);

function buttons({ yes, danger, no, enabled = true }) {
    const { yes: button, no: other } = parts();
    toggle(button, Boolean(yes));
    say(button, yes || "");
    button.disabled = !enabled;
    button.classList.toggle("btn-danger", Boolean(danger));
    button.classList.toggle("btn-primary", !danger);
    say(other, no);
}

/** An alert in the dialog, which takes the focus so that it is read. */
function answer(...children) {
    const box = h("div", { class: "delayed-answers", role: "status", tabindex: "-1" }, children);
    show(parts().body, box);
    box.focus();
}

/** What went wrong, in the words of the server. */
export function failure(error) {
    return h("div", { class: "alert alert-danger mb-0" },
        h("strong", null, error.status ? "Refused. " : "No answer. "), error.message);
}

async function run() {
    const { body, yes } = parts();
    if (isBusy || confirm === null) {
        return;
    }
    if (!body.closest("form").reportValidity()) {
        return;
    }
    isBusy = true;
    yes.disabled = true;
    const working = yes.textContent;
    say(yes, "Working…");
    try {
        const next = await confirm();
        confirm = next?.confirm || null;
        answer(next.answer);
        buttons(next.confirm ? next : { no: "Close" });
        finished.changed = true;
    } catch (error) {
        confirm = null;
        answer(failure(error));
        buttons({ no: "Close" });
        // without an answer nobody knows: look anew
        finished.changed = true;
        say(yes, working);
    } finally {
        isBusy = false;
    }
}

/**
 * Ask, do, show.
 *
 * title, body (elements), yes (label), danger; `work()` does it and returns {answer: elements}.  With
 * `prepare()` something is asked before the question can be put: it returns {body, yes, work}.
 * The promise is kept when the dialog has gone: true if something may have changed.
 */
export function ask({ title, body, yes, danger, work, prepare }) {
    const { box, title: heading, body: holder } = parts();
    say(heading, title);
    finished = { changed: false };
    const mine = finished;
    const put = (question) => {
        show(holder, question.body);
        confirm = question.work || null;
        buttons({ yes: question.work ? question.yes : "", danger, no: question.work ? "Leave it" : "Close" });
        holder.querySelector("[data-autofocus]")?.focus();
    };
    if (prepare) {
        show(holder, h("p", { class: "mb-0" }, "Looking how many there are…"));
        confirm = null;
        buttons({ yes, danger, no: "Leave it", enabled: false });
        prepare().then((question) => mine === finished && put(question),
            (error) => mine === finished && put({ body: failure(error) }));
    } else {
        put({ body, yes, work });
    }
    modal().show();
    return new Promise((resolve) => {
        box.addEventListener("hidden.bs.modal", () => resolve(mine.changed), { once: true });
    });
}

/** Whether it is open; a page that is read-only has none. */
export const isOpen = () => parts().box?.classList.contains("show") ?? false;

/** Wire the dialog of the page; once. */
export function wire() {
    const { box } = parts();
    const opener = { element: null };
    box.querySelector("form").addEventListener("submit", (event) => {
        event.preventDefault();
        run();
    });
    box.addEventListener("show.bs.modal", () => {
        // an item of a menu is hidden by now: the focus goes back to what opens the menu
        const element = document.activeElement;
        opener.element = element.closest(".dropdown")?.querySelector("[data-menu]") || element;
    });
    box.addEventListener("hidden.bs.modal", () => {
        const { element } = opener;
        const { menu } = element.dataset;
        const current = element.isConnected || menu === undefined ? element : document.querySelector(`[data-menu="${CSS.escape(menu)}"]`);
        current?.focus();
    });
}
