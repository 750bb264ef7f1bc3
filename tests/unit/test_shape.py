"""An envelope, split into its template and its values, and joined again."""

from __future__ import annotations

import json
from base64 import b64encode
from typing import Any

import pytest

from celery_delay.domain.entries import Record, Template, template_id
from celery_delay.message.shape import EMBED, TAILS, Place, Shape, shape_of

PLACE = Place(0, "celery", "celery")
EMBEDS = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


def envelope(raw: str | bytes, task_id: str = "an-id", **properties: Any) -> dict[str, Any]:
    body = b64encode(raw.encode() if isinstance(raw, str) else raw).decode()
    return {
        "body": body,
        "content-type": "application/json",
        "headers": {"id": task_id, "task": "shop.pay", "argsrepr": "(1,)", "origin": "gen1@vm"},
        "properties": {"correlation_id": task_id, "delivery_tag": "t", **properties},
    }


def joined(shape: Shape, given: dict[str, Any]) -> dict[str, Any]:
    """The message as it is put onto the queue, by way of the stored text of the record."""
    name = template_id(shape.template)
    text = Record(7, 1, 8, 0, name, shape.values(given)).encode()
    record = Record.decode(text)
    slots = record.slots(given["headers"]["id"], 9)
    message: dict[str, Any] = json.loads(Template.decode(shape.template).fill(slots))
    del message["headers"]["celery_delay"], message["properties"]["delivery_tag"]
    return message


def expected(given: dict[str, Any]) -> dict[str, Any]:
    wanted: dict[str, Any] = json.loads(json.dumps(given))
    del wanted["properties"]["delivery_tag"]
    return wanted


def raws() -> list[str | bytes]:
    """Bodies of every length in a row, some of them hostile."""
    plain = [json.dumps([["x" * n], {}, EMBEDS]) for n in range(12)]
    odd = [
        json.dumps([["a\\\"b\n\u20ac", None], {"k": [1.5, True]}, EMBEDS]),
        json.dumps([[EMBED], {EMBED: EMBED}, EMBEDS]),
        json.dumps([[], {}, {**EMBEDS, "chord": {"task": "x"}}]),
        json.dumps([[], {}, EMBEDS], separators=(",", ":")),
        EMBED, EMBED[1:], EMBED[2:], EMBED[3:], "", "x", b"\x80\x04pickled\xff",
        b"\x00" + EMBED.encode(),
    ]  # fmt: skip
    return [*plain, *odd]


@pytest.mark.parametrize("raw", raws())
@pytest.mark.parametrize("task_id", ["an-id", 'an "id"'])
def test_what_is_split_is_joined_as_it_was(raw: str | bytes, task_id: str) -> None:
    given = envelope(raw, task_id, reply_to="somebody")
    shape = shape_of(given, PLACE, labelled=False)
    assert joined(shape, given) == expected(given)


def test_a_message_without_a_text_as_its_body_is_split_too() -> None:
    given = {**envelope("x"), "body": [1, 2]}
    shape = shape_of(given, PLACE, labelled=False)
    assert shape.tail == ""
    assert joined(shape, given) == expected(given)


def test_the_end_of_a_body_without_callbacks_is_not_in_the_record() -> None:
    for n in range(12):
        given = envelope(json.dumps([["x" * n], {}, EMBEDS]))
        shape = shape_of(given, PLACE, labelled=False)
        [body, *_] = shape.values(given)
        assert body + shape.tail + '"' == json.dumps(given["body"])
        assert len(body) <= 4 * -(-len(json.dumps([["x" * n], {}])) // 3) + 1


def test_one_call_with_other_arguments_has_one_of_three_templates() -> None:
    found: dict[str, str] = {}
    for n in range(12):
        given = envelope(json.dumps([["x" * n], {}, EMBEDS]))
        shape = shape_of(given, PLACE, labelled=False)
        found[shape.tail] = shape.template
        # whoever has seen one knows the others
        assert shape.templates()[TAILS.index(shape.tail)] == shape.template
        assert set(found.values()) <= set(shape.templates())
    assert set(found) == set(TAILS)


def test_callbacks_stay_in_the_record() -> None:
    given = envelope(json.dumps([[], {}, {**EMBEDS, "callbacks": [{"task": "x"}]}]))
    assert shape_of(given, PLACE, labelled=False).tail == ""
