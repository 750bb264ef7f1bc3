/* The search box: `task:shop.* queue:mail tag:vip`, and anything else as text. */

const FIELDS = ["task", "queue", "tag", "namespace", "id"];
const TERM = new RegExp(`(?:(${FIELDS.join("|")}):)?(?:"((?:[^"\\\\]|\\\\.)*)"|(\\S+))`, "gi");

/** The parameters that a text asks for. */
export function read(text) {
    const found = {};
    const rest = [];
    for (const [, field, quoted, plain] of text.matchAll(TERM)) {
        const value = quoted?.replace(/\\(.)/g, "$1") ?? plain;
        const name = field?.toLowerCase();
        if (!name) {
            rest.push(value);
        } else if (name === "tag" && found.tag) {
            found.tag.push(value);
        } else {
            found[name] = name === "tag" ? [value] : value;
        }
    }
    if (rest.length) {
        found.search = rest.join(" ");
    }
    return found;
}

/** The term for a field; quoted where it has to be. */
export function term(field, value) {
    return `${field}:${/[\s"]/.test(value) || value === "" ? `"${value.replace(/["\\]/g, "\\$&")}"` : value}`;
}
