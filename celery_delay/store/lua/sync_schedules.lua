--- Make the stored periodic schedules those of the caller.
-- @include clock
-- @allow-oom
-- KEYS: mark lease schedules occurrences
-- ARGV: now:int:ms epoch:int term:int rest:*
--   rest = (name, version, next occurrence in ms) triples.  A schedule of the same version
--   keeps its cursor and its next occurrence, so that a restart is no event; one of another
--   starts anew, its cursor is now.  Next -1: there is none; -2: unknown, leave it as it is.
-- RETURNS: EPOCH | TERM | OK

if tonumber(redis.call('HGET', mark, 'epoch') or 0) ~= epoch then
  return 'EPOCH'
end
if tonumber(redis.call('HGET', lease, 'term') or 0) ~= term then
  return 'TERM'
end
now = time_ms(now)
local wanted = {}
for i = 1, #rest, 3 do
  local name, version, due = rest[i], rest[i + 1], rest[i + 2]
  wanted[name] = true
  local stored = redis.call('HGET', schedules, name)
  local state = stored and cjson.decode(stored) or {}
  if state.version ~= version and due ~= '-2' then
    -- as text: cjson would write a millisecond instant as 1.7e+12
    redis.call('HSET', schedules, name, cjson.encode({ version = version, cursor = text(now) }))
    if due == '-1' then
      redis.call('ZREM', occurrences, name)
    else
      redis.call('ZADD', occurrences, due, name)
    end
  end
end
for _, name in ipairs(redis.call('HKEYS', schedules)) do
  if not wanted[name] then
    redis.call('HDEL', schedules, name)
    redis.call('ZREM', occurrences, name)
  end
end
return 'OK'
