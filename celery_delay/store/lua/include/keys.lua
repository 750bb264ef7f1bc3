-- Unique keys and idempotency keys: who has them.
--   uniques: "u:" and a unique key, or "i:" and an idempotency key
--            -> "<end> <run> <eta in ms> <task id>"
--   unique_ends: the same fields -> instant in ms at which they end, of those that do
-- The end of a unique key is 0 while it is part of its entry: it counts while that very entry is
-- live, under a claim or parked, and no longer.  After the hand-off it is a lease with an end.
-- Expects the locals: uniques, unique_ends.

local function read_key(field)
  -- returns: a table of ends, run, due and id; or nil
  local value = redis.call('HGET', uniques, field)
  if value then
    local ends, run, due, id = string.match(value, '^(%d+) (%d+) (%d+) (.*)$')
    return ends and { ends = tonumber(ends), run = run, due = due, id = id }
  end
end

local function write_key(field, ends, id, run, due)
  redis.call('HSET', uniques, field, text(ends) .. ' ' .. run .. ' ' .. due .. ' ' .. id)
  if ends > 0 then
    redis.call('ZADD', unique_ends, text(ends), field)
  else
    redis.call('ZREM', unique_ends, field)
  end
end

local function free_key(field)
  redis.call('HDEL', uniques, field)
  redis.call('ZREM', unique_ends, field)
end
