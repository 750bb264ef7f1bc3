/* What the verbs do and what their answers mean, in words.  One place: buttons, dialogs, results. */

const many = (n, one, more) => (n === 1 ? one : more);

/** verb → its words and the states it is for. */
export const VERBS = {
    "run-now": {
        label: "Run now",
        states: ["SCHEDULED", "HELD"],
        done: "RESCHEDULED",
        says: (n) => many(n, "It is due at once and goes to its queue, also if it is held.",
            "They are due at once and go to their queues, also those that are held."),
    },
    reschedule: {
        label: "Reschedule",
        states: ["SCHEDULED", "HELD"],
        done: "RESCHEDULED",
        says: (n) => many(n, "It gets another due time. A held task gets it too, and stays held.",
            "All of them get this due time. Held tasks get it too, and stay held."),
    },
    hold: {
        label: "Hold",
        states: ["SCHEDULED"],
        done: "HELD",
        says: (n) => many(n, "It does not run, whatever its due time, until somebody releases it. Its expiry goes on counting.",
            "They do not run, whatever their due time, until somebody releases them. Their expiry goes on counting."),
    },
    release: {
        label: "Release",
        states: ["HELD"],
        done: "RELEASED",
        says: (n) => many(n, "It goes back into the schedule with the due time it has; if that has passed, it runs at once.",
            "They go back into the schedule with the due times they have; those that have passed run at once."),
    },
    resend: {
        label: "Send again",
        states: ["QUARANTINED"],
        done: "RELEASED",
        says: (n) => many(n, "It could not be handed off and was parked. It is tried once more: mend the cause first.",
            "They could not be handed off and were parked. They are tried once more: mend the cause first."),
    },
    cancel: {
        label: "Cancel",
        danger: true,
        states: ["SCHEDULED", "HELD", "QUARANTINED"],
        done: "CANCELLED",
        says: (n) => many(n, "It is taken out of the store and never runs. This cannot be undone.",
            "They are taken out of the store and never run. This cannot be undone."),
    },
};

/** outcome → [Bootstrap's colour, meaning for several]; what it means for one the server says. */
const OUTCOMES = {
    CANCELLED: ["success", "taken out of the store: never run"],
    RESCHEDULED: ["success", "given the new due time"],
    HELD: ["success", "kept back until somebody releases them"],
    RELEASED: ["success", "back in the schedule, due as before"],
    TOO_LATE: ["danger", "already handed to the queue, or on the way there: may run, and nothing has changed"],
    NOT_FOUND: ["warning", "wait no more: nothing has changed"],
    QUARANTINED: ["warning", "parked because they cannot be handed off: mend the cause, then send them again"],
    DAMAGED: ["danger", "records that cannot be read: they can only be cancelled"],
    CONFLICT: ["danger", "not released: another task with the same id waits"],
};

export function outcome(name) {
    const [colour, text] = OUTCOMES[name] || ["secondary", ""];
    return { colour, text };
}

const STATES = {
    SCHEDULED: "scheduled", HELD: "warning", QUARANTINED: "danger", LOST: "danger", FAILED: "danger",
    DISPATCHED: "info", STARTED: "started", SUCCEEDED: "success", RETRIED: "warning",
    CANCELLED: "secondary", EXPIRED: "secondary", REVOKED: "secondary", REJECTED: "danger", GAP: "danger",
};

/** The class of the badge of a state, in Flower's colours. */
export function badge(state) {
    const colour = STATES[state] || "secondary";
    if (colour === "scheduled") {
        return "badge delayed-state-scheduled";
    }
    return colour === "started" ? "badge task-state-started" : `badge text-bg-${colour}`;
}

/** The verbs for what stands in a state. */
export const verbsFor = (state) => Object.keys(VERBS).filter((verb) => VERBS[verb].states.includes(state));

export const tasks = (n) => `${n.toLocaleString()} ${many(n, "task", "tasks")}`;
