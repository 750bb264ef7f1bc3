"""Which commands an ACL refuses, as Redis 7 and 6.2 tell it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import redis

from celery_delay.embedded import EmbeddedRedis
from celery_delay.store.connection import Link, Links
from celery_delay.store.keys import ShardKeys
from celery_delay.store.rights import COMMANDS, refusals, user_of
from tests.contract.bench import answers

pytestmark = pytest.mark.redis62

KEYS = ShardKeys("celery-delay:probe-rights:", 0)
Nurse = Callable[..., Link]


@pytest.fixture
def nurse(redis_server: EmbeddedRedis) -> Iterator[Nurse]:
    """A link as a user with all rights, and those rules on top."""
    admin = redis.Redis(unix_socket_path=str(redis_server.socket))
    links = []

    def make(*rules: str) -> Link:
        admin.execute_command("ACL", "SETUSER", "nurse", "on", ">pw", "~*", "&*", "+@all", *rules)
        url = f"redis://nurse:pw@127.0.0.1:{redis_server.port}/0"
        links.append(Links.from_url(url, 2.0).link())
        return links[-1]

    yield make
    for link in links:
        link.close()
    admin.execute_command("ACL", "DELUSER", "nurse")
    assert admin.keys() == []


def refused(link: Link) -> set[str]:
    return {one.command for one in refusals(link, KEYS, 0)}


def test_who_may_do_everything_is_refused_nothing(nurse: Nurse) -> None:
    link = nurse()
    assert refused(link) == set()
    assert user_of(link) == "nurse"


@answers("rights", "the name and the refusal")
@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_each_command_that_is_refused_is_named(nurse: Nurse, command: str) -> None:
    link = nurse(f"-{command.lower()}")
    # without it a script cannot be sent
    also = {"EVAL", "EVALSHA"} if command in ("EVAL", "EVALSHA") else {command}
    assert command in refused(link) <= also


def test_several_are_named_at_once(nurse: Nurse) -> None:
    assert refused(nurse("-hset", "-blpop", "-xtrim", "-select")) == {
        "HSET",
        "BLPOP",
        "XTRIM",
        "SELECT",
    }


def test_keys_that_may_not_be_used_are_told(nurse: Nurse) -> None:
    found = refusals(nurse("resetkeys", "~other:*"), KEYS, 0)
    assert found
    assert all("key" in one.words for one in found)


class Badge(redis.CredentialProvider):
    """Knows who we are, and tells the server alone."""

    def get_credentials(self) -> tuple[str, str]:
        return "nurse", "pw"


@pytest.mark.parametrize(("rule", "name"), [("+acl", "nurse"), ("-acl", None)])
def test_the_server_is_asked_who_we_are_where_nobody_else_says(
    nurse: Nurse, redis_server: EmbeddedRedis, rule: str, name: str | None
) -> None:
    nurse(rule)
    options = {"credential_provider": Badge()}
    link = Links.from_url(f"redis://127.0.0.1:{redis_server.port}/0", 2.0, options).link()
    assert user_of(link) == name
    link.close()
