-- Claims: entries that a beat has taken out to publish them.  A record is either live (in
-- entries) or claimed, never both, so a task id has at most one claim.
--   claimed: task id -> "<token> <attempt> <eta in ms>", line break, record
--   claims:  task id -> when others may take it that the claimant is dead
-- Expects the locals: claims, claimed, attempts, and those of records.lua and journal.lua.

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

local function handed_off(id, eta, record)
  -- ends the claim of an entry whose message the broker has; returns: its journal line
  end_claim(id)
  redis.call('HDEL', attempts, id)
  local _, digest, run, version, _, _, payload = read_head(record)
  if is_whole(payload, digest) then
    release_template(payload)
  end
  return id .. '\t' .. run .. '\t' .. version .. '\t' .. eta .. '\t{"lag_ms":'
    .. text(math.max(0, now - tonumber(eta))) .. '}'
end
