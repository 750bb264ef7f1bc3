-- Claims: entries that a beat has taken out to publish them.  A record is either live (in
-- entries) or claimed, never both, so a task id has at most one claim.  An entry whose claim
-- has ended in silence is live again, but its message may be on its queue.
--   claimed: task id -> "<token> <attempt> <eta in ms>", line break, record
--   claims:  task id -> when others may take it that the claimant is dead
-- Expects the locals: claims, claimed, attempts.

--   attempts: task id -> how many claims of the entry have ended in silence; none for 0

local function read_claim(id)
  -- returns: token, attempt, eta, record; or nil
  local value = redis.call('HGET', claimed, id)
  if value then
    return string.match(value, '^(%S+) (%d+) (%d+)\n(.*)$')
  end
end

local function end_claim(id)
  redis.call('ZREM', claims, id)
  redis.call('HDEL', claimed, id)
end
