"""The texts in Redis: records, templates and journal lines, there and back."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celery_delay.domain.entries import CODEC, EntryId, Record, StoredEntry, Template, template_id
from celery_delay.domain.events import GAP, decode_lines, encode_lines

#: What JSON and base64 texts are made of: no control characters, no half surrogate pairs.
texts = st.text(st.characters(exclude_categories=("Cs", "Cc")))
numbers = st.integers(0, 253_402_300_799_999)

records = st.builds(
    Record,
    numbers,
    st.integers(1, 10_000),
    numbers,
    numbers,
    texts,
    st.lists(texts.filter(lambda text: not text.startswith("~"))).map(tuple),
    texts,
)
keys = texts.filter(bool)


# --- records --------------------------------------------------------------------------------


@given(records)
def test_a_record_comes_back_as_it_was(record: Record) -> None:
    assert Record.decode(record.encode()) == record


def test_the_format_of_records_is_that_of_codec_1() -> None:
    # Records outlive an upgrade, and scripts read them.  Should this text have to change,
    # so must CODEC.
    record = Record(1_700_000_000_000, 2, 1_700_000_003_000, 0, "0123456789abcdef", ('"a"', "[]"))

    assert CODEC == "1"
    assert record.encode() == (
        '1 ff6065db8e\n1700000000000\n2\n1700000003000\n0\n0123456789abcdef\n"a"\n[]'
    )


@pytest.mark.parametrize("codec", ["2", "10", "", "one"])
def test_a_record_of_an_unknown_version_is_refused(codec: str) -> None:
    text = Record(1, 1, 1, 0, "t", ("v",)).encode()

    with pytest.raises(ValueError, match="unknown version"):
        Record.decode(codec + text.removeprefix(CODEC))


@pytest.mark.parametrize("text", ["", "1 abc", "1 abc\n1\n1\n1\n0", "1 abc\nx\n1\n1\n0\nt"])
def test_what_is_no_record_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  whichever part is missing
        Record.decode(text)


@given(records, texts)
def test_the_digest_covers_template_and_values(record: Record, other: str) -> None:
    def digest(one: Record) -> str:
        return one.encode().splitlines()[0]

    changed = record._replace(values=(*record.values, other))

    assert digest(changed) != digest(record)
    assert digest(record._replace(template=record.template + "x")) != digest(record)
    # the head may be rewritten without a new digest
    assert digest(record._replace(version=record.version + 1)) == digest(record)


# --- templates ------------------------------------------------------------------------------


@given(
    st.builds(
        Template,
        st.integers(0, 15),
        keys,
        texts,
        texts,
        numbers,
        st.lists(keys).map(tuple),
        st.text(),
    )
)
def test_a_template_comes_back_as_it_was(template: Template) -> None:
    assert Template.decode(template.encode()) == template


def test_the_format_of_templates_is_that_of_codec_1() -> None:
    template = Template(
        3, "celery", "shop.pay", "celery", 60_000, ("celery", "celery\x06\x163"), '{"id":"\x01i"}'
    )

    text = template.encode()

    assert (
        text == '1\n3\ncelery\nshop.pay\ncelery\n60000\n2\ncelery\ncelery\x06\x163\n{"id":"\x01i"}'
    )
    assert template_id(text) == "5e83443ffff2829a"


def test_a_template_of_an_unknown_version_is_refused() -> None:
    text = Template(0, "celery", "shop.pay", "celery", 0, (), "{}").encode()

    with pytest.raises(ValueError, match="unknown version '2'"):
        Template.decode("2" + text.removeprefix(CODEC))


def test_equal_templates_have_equal_ids_and_others_do_not() -> None:
    one, same = (
        Template(0, "celery", "shop.pay", "celery", 0, (), "{}").encode() for _ in range(2)
    )
    other = Template(1, "celery", "shop.pay", "celery", 0, (), "{}").encode()

    assert template_id(one) == template_id(same)
    assert template_id(one) != template_id(other)


@given(st.lists(st.tuples(texts, st.sampled_from("irdnABC"))), texts, st.text())
def test_slots_are_filled_and_nothing_else_is_touched(
    parts: list[tuple[str, str]], tail: str, value: str
) -> None:
    body = "".join(f"{literal}\x01{slot}" for literal, slot in parts) + tail
    slots = {slot: f"{value}{slot}" for slot in "irdnABC"}

    filled = Template(0, "celery", "shop.pay", "celery", 0, (), body).fill(slots)

    assert filled == "".join(literal + slots[slot] for literal, slot in parts) + tail


# --- the journal ----------------------------------------------------------------------------

task_ids = texts.filter(lambda one: bool(one) and one.isprintable())
data = st.dictionaries(st.text(), st.none() | st.booleans() | st.integers() | st.text())
transitions = st.tuples(
    st.builds(EntryId, task_ids, numbers), st.integers(0, 10_000), st.none() | numbers, data
)


@given(st.lists(transitions, min_size=1))
def test_journal_lines_come_back_as_events(given_ones: list[tuple[Any, ...]]) -> None:
    events = decode_lines(3, 7, "5-1", "STARTED", 1_000, encode_lines(given_ones))

    assert [(one.entry_id, one.version, one.eta_ms, one.data) for one in events] == given_ones
    assert [one.position for one in events] == list(range(len(given_ones)))
    for one in events:
        assert (one.shard, one.epoch, one.stream_id, one.state, one.at_ms) == (
            3, 7, "5-1", "STARTED", 1_000,
        )  # fmt: skip


def test_the_format_of_journal_lines() -> None:
    # scripts write such lines too
    lines = [(EntryId("a", 5), 1, 2_000, {"lag_ms": 3}), (EntryId("b", 6), 2, None, {})]

    assert encode_lines(lines) == 'a\t5\t1\t2000\t{"lag_ms":3}\nb\t6\t2\t\t{}'


@pytest.mark.parametrize("broken", ["", "a", "a\tx\t1\t\t{}", "a\t1\t1\t\t{", "a\t1\t1\tsoon\t{}"])
def test_a_line_that_cannot_be_read_leaves_a_gap_and_not_more(broken: str) -> None:
    good = encode_lines([(EntryId("good", 1), 1, None, {})])

    before, gap, after = decode_lines(0, 1, "1-0", "STARTED", 9, "\n".join([good, broken, good]))

    assert (before.state, after.state) == ("STARTED", "STARTED")
    assert (gap.state, gap.position, gap.entry_id) == (GAP, 1, EntryId("-", 0))
    assert gap.data["missing"] == 1
    assert broken in str(gap.data["unreadable"])


def test_an_unreadable_line_is_not_told_at_any_length() -> None:
    [gap] = decode_lines(0, 1, "1-0", "STARTED", 9, "x" * 100_000)

    assert len(str(gap.data["unreadable"])) < 1_000


# --- a stored entry -------------------------------------------------------------------------


def stored(**envelope: Any) -> StoredEntry:
    return StoredEntry(EntryId("a", 1), 1, 0, 0, envelope.pop("headers", {}), "celery", envelope)


def body(chord: Any) -> str:
    return base64.b64encode(json.dumps([[], {}, {"chord": chord}]).encode()).decode()


def test_the_chord_of_an_entry_is_read_from_json_only() -> None:
    chord = {"task": "project.total"}
    readable = {"content-type": "application/json", "body": body(chord)}

    assert stored(**readable).chord == chord
    assert stored(**{**readable, "content-type": "application/x-python-serialize"}).chord is None
    assert stored(**readable, headers={"compression": "application/x-gzip"}).chord is None
    assert stored(**{**readable, "body": "not base64 of JSON"}).chord is None
