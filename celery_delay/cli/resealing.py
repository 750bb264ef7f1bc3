"""``rotate-keys``: what is encrypted in SQL, with the newest key."""

from __future__ import annotations

from typing import TYPE_CHECKING

from celery_delay.cli.output import Output
from celery_delay.cli.progress import progress_bar
from celery_delay.cli.verb import NO, YES, say_error, verb

if TYPE_CHECKING:
    from celery_delay.app import CeleryDelay

__all__ = ["rotate_keys_command"]


@verb("rotate-keys")
def rotate_keys_command(delayed: CeleryDelay, out: Output) -> int:
    """Encrypt the payloads in SQL with the newest of `delay_payload_keys`.

    Put the new key behind the old ones and deploy everywhere; then put it first, deploy, and give
    this command.  When it exits with 0, the old keys can go.  It works in small transactions
    while everything goes on, and may be given again at any time.

    \b
    Example:
      celery -A proj delay rotate-keys

    The exit code is 0; 1 if some need a key that is not known: they stay as they are; 2 without an
    audit database or with wrong keys; 69 if the database is away.
    """
    with progress_bar("sealing", None) as show:
        told = delayed.rotate_keys(progress=lambda number: show(number, f"{number} payloads"))
    if out.as_json:
        out.document({**told._asdict(), "key_ids": list(delayed.seal.key_ids)})
    else:
        out.line(f"{told.resealed} payloads sealed anew, {told.current} were so already")
    if told.unreadable:
        say_error(
            f"{told.unreadable} payloads need a key that delay_payload_keys does not have, or were"
            " changed: they stay as they are"
        )
    return NO if told.unreadable else YES
