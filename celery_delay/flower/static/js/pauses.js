/* Pauses: what keeps a task, a queue, a namespace or everything back, begun and ended by people. */

import { post } from "./api.js";
import { ask } from "./dialog.js";
import { h } from "./dom.js";
import { duration, reason } from "./fields.js";
import { read } from "./search.js";
import { tasks } from "./words.js";

const KINDS = { queue: "Queue", task: "Task", namespace: "Namespace", all: "Everything" };

const result = ({ outcome, gate, text, waiting }) => h("div", { class: `alert alert-${outcome === "NOT_PAUSED" ? "warning" : "success"} mb-0`, "data-outcome": outcome },
    h("strong", null, `${outcome.replaceAll("_", " ")}: ${gate}`), ` — ${text}${waiting ? `: ${tasks(waiting)}` : ""}.`);

/** `queue:mail` as the API has it. */
function fields(gate) {
    const [kind, ...name] = gate.split(":");
    return kind === "all" ? { all: true } : { [kind]: name.join(":") };
}

/** Ask what to pause; what is searched for, in `text`, is offered.  Resolves to whether something may have changed. */
export function pause(text) {
    const searched = read(text);
    const offered = Object.keys(KINDS).find((kind) => searched[kind]) || "queue";
    const name = h("input", { class: "form-control", id: "delayed-pause-name", maxlength: "300", required: true, value: searched[offered] || "",
        "aria-label": "Its name", "data-autofocus": true, autocomplete: "off" });
    const kind = h("select", { class: "form-select", id: "delayed-pause-kind", "aria-label": "What to pause",
        change: () => {
            name.disabled = kind.value === "all";
        } }, Object.entries(KINDS).map(([value, label]) => h("option", { value, selected: value === offered }, label)));
    const why = reason();
    return ask({
        title: "Pause",
        yes: "Pause",
        body: [h("p", null, "Nothing of it is handed to its queue until somebody resumes it, over restarts and deployments. It waits in the store, and expiries go on counting. What was handed off before runs."),
            h("div", { class: "delayed-pause-what mb-3" }, kind, name), why.element],
        work: async () => {
            const which = kind.value === "all" ? { all: true } : { [kind.value]: name.value.trim() };
            return { answer: result(await post("/api/delayed/pauses/pause", { ...which, ...why.value() })) };
        },
    });
}

/** End a pause, after asking; resolves to whether something may have changed. */
export function resume({ gate, waiting }) {
    const over = duration({ amount: "0", unit: "minutes", label: "Over", id: "delayed-over", min: "0" });
    return ask({
        title: `Resume: ${gate === "all" ? "everything" : gate}`,
        yes: "Resume",
        body: [h("p", null, "What becomes due from now on is handed off", waiting ? `, and ${tasks(waiting)} that ${waiting === 1 ? "has" : "have"} gathered ${waiting === 1 ? "comes" : "come"} back.` : "."),
            h("label", { class: "form-label", for: "delayed-over" }, "Spread what has gathered over (0: as fast as it goes)"),
            h("div", { class: "delayed-pause-what" }, over.elements)],
        work: async () => ({ answer: result(await post("/api/delayed/pauses/resume", { ...fields(gate), over: over.seconds() })) }),
    });
}
