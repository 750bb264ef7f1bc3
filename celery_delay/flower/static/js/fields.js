/* Fields that several dialogs have. */

import { h } from "./dom.js";

const UNITS = { seconds: 1, minutes: 60, hours: 3600, days: 86400 };

/** A number and its unit: {elements, seconds()}; further attributes are those of the number. */
export function duration({ amount, unit, label, ...more }) {
    const number = h("input", { class: "form-control", type: "number", step: "any", value: amount, required: true, "aria-label": label, ...more });
    const units = h("select", { class: "form-select", "aria-label": "Unit" },
        Object.keys(UNITS).map((one) => h("option", { value: one, selected: one === unit }, one)));
    return { elements: [number, units], seconds: () => Number(number.value) * UNITS[units.value] };
}

/** Why something is done: {element, value()}. */
export function reason() {
    const field = h("input", { class: "form-control", id: "delayed-reason", maxlength: "200", placeholder: "for whoever looks next" });
    return { element: h("div", { class: "mb-3" }, h("label", { class: "form-label", for: "delayed-reason" }, "Reason (optional)"), field),
        value: () => (field.value.trim() ? { reason: field.value.trim() } : {}) };
}
