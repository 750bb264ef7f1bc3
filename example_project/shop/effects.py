"""What the outside world gets to see: a mail, a notification, a charge.

This shop has no mail server.  It writes one line per effect to the file SHOP_LEDGER if
there is one, and the demo counts those lines: they are what really happened, whatever
Celery or celery-delay may say about it.
"""

import os
import time


def effect(task: str, what: str) -> None:
    """Let *what* happen.  Lines of several processes do not mix: each is one append."""
    path = os.environ.get("SHOP_LEDGER")
    if not path:
        return
    line = f"{time.time():.6f}\t{task}\t{what}\n"
    ledger = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(ledger, line.encode())
    finally:
        os.close(ledger)
