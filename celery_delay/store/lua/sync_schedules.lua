--- Make the stored periodic schedules those of the caller.
-- @include clock schedules leading
-- @allow-oom
-- KEYS: mark lease schedules occurrences statics
-- ARGV: now:int:ms epoch:int term:int revision:int rest:*
--   revision  that of the schedules as the caller knows them
--   rest = (name, version, next occurrence in ms, description) of each.  A schedule of the same
--   version keeps its cursor and its next occurrence, so that a restart is no event; one of
--   another starts anew, its cursor is now, and a pause goes on.  Next -1: there is none; -2:
--   unknown, leave it as it is.  A description is JSON of what code owns; else it is empty.
-- RETURNS: EPOCH | TERM | STALE (somebody has changed them since) | OK

local refused = why_not_leading()
if refused then
  return refused
end
if revision_now() ~= revision then
  return 'STALE'
end
now = time_ms(now)
local described = {}
for i = 1, #rest, 4 do
  described[rest[i]] = rest[i + 3]
  local name, version, due = rest[i], rest[i + 1], rest[i + 2]
  local state = read_state(name)
  if state.version ~= version and due ~= '-2' then
    local since = due == '-1' and now or math.min(now, tonumber(due))
    write_state(name, {
      version = version, since = text(since), cursor = text(now),
      paused = state.paused, by = state.by, reason = state.reason, resumed = state.resumed,
    })
    if due == '-1' then
      redis.call('ZREM', occurrences, name)
    else
      redis.call('ZADD', occurrences, due, name)
    end
  end
  if described[name] ~= '' then
    redis.call('HSET', statics, name, described[name])
  end
end
for _, name in ipairs(redis.call('HKEYS', statics)) do
  if (described[name] or '') == '' then
    redis.call('HDEL', statics, name)
  end
end
for _, name in ipairs(redis.call('HKEYS', schedules)) do
  if not described[name] then
    local state = read_state(name)
    if state.paused then
      -- it may come back with the next deployment, and must not run then
      write_state(name, { paused = state.paused, by = state.by, reason = state.reason })
    else
      redis.call('HDEL', schedules, name)
    end
    redis.call('ZREM', occurrences, name)
  end
end
return 'OK'
