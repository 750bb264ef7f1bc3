-- Where schedules stand.  All values are texts: cjson would write a millisecond instant as 1.7e+12.
-- Expects the locals: mark, schedules.
--   version  of its times; with another one it starts anew
--   since    when it started; of what came before nothing is known
--   cursor   the last nominal instant that was fired, or fell into a pause; before the first, when
--            it was first seen
--   fired    the last that was fired
--   paused   since when it is; by and reason go with it
--   resumed  what was due before that fell into a pause
--   gaps     the nominal instants since it started that were not fired: "from-to,…", without to

local function revision_now()
  return tonumber(redis.call('HGET', mark, 'revision') or 0)
end

local function changed()
  -- a beat that has read the schedules before does nothing by what it has read
  redis.call('HINCRBY', mark, 'revision', 1)
end

local function read_state(name)
  local stored = redis.call('HGET', schedules, name)
  return stored and cjson.decode(stored) or {}
end

local function write_state(name, state)
  redis.call('HSET', schedules, name, cjson.encode(state))
end
