"""The tap: takes messages off the raw queue and notes when each was handed off.

Not a worker: it knows nothing of Celery.  One script takes messages and stamps them with
Redis' TIME into a list that is only ever read on from where it was read to, so that neither a
lost answer nor a restart of Redis makes the tap forget a message or see one twice.  It ends
after a last look once the file ``tap.stop`` exists.
"""

from __future__ import annotations

import json
import os
import time
from functools import partial
from pathlib import Path

from book import Page, client, persist

TAKE = """
local time = redis.call('TIME')
local stamp = time[1] * 1000 + math.floor(time[2] / 1000)
for _ = 1, 500 do
  local message = redis.call('RPOP', 'tap')
  if not message then break end
  redis.call('RPUSH', 'tapped', string.format('%.0f', stamp) .. ' ' .. message)
end
"""


def main(folder: Path, url: str) -> None:
    connection, page, seen = client(url), Page(folder / "tap.jsonl"), 0
    while True:
        last = (folder / "tap.stop").exists()
        persist(lambda: connection.eval(TAKE, 0))
        taken = persist(partial(connection.lrange, "tapped", seen, seen + 999))
        for one in taken:
            at, _, message = one.partition(b" ")
            page.write(id=json.loads(message)["headers"]["id"], at=int(at))
        seen += len(taken)
        if last and not taken:
            break
        time.sleep(0.01)


if __name__ == "__main__":
    main(Path(os.environ["LEDGER_FOLDER"]), os.environ["LEDGER_REDIS_URL"])
