--- Fire one occurrence: advance the schedule's cursor and add its entry, in one step.
-- @include clock instants journal records ways wake
-- @allow-oom
-- KEYS: mark lease schedules occurrences schedule outbound entries claimed templates template_uses journal wake
-- ARGV: now:int:ms journal_max:int:events epoch:int term:int name:str expected:int:ms cursor:int:ms next:int:ms rest:*
--   next  the occurrence after this one; -1 for none
--   rest = nothing (only advance), or (task id, due: "@" instant or "+" delay in ms, record,
--          story as JSON, template id, template)
-- RETURNS: EPOCH | TERM | FIRED (by another, or gone) | OK
--   | LIVE (advanced, but an entry of this id waits already)

if tonumber(redis.call('HGET', mark, 'epoch') or 0) ~= epoch then
  return 'EPOCH'
end
if tonumber(redis.call('HGET', lease, 'term') or 0) ~= term then
  return 'TERM'
end
if tonumber(redis.call('ZSCORE', occurrences, name) or -1) ~= expected then
  return 'FIRED'
end
now = time_ms(now)
local id, due, record, story, template, body = unpack(rest)
local is_live = id
  and (redis.call('HEXISTS', entries, id) == 1 or redis.call('HEXISTS', claimed, id) == 1)
local state = cjson.decode(redis.call('HGET', schedules, name) or '{}')
-- as text: cjson would write a millisecond instant as 1.7e+12
state.cursor = text(cursor)
redis.call('HSET', schedules, name, cjson.encode(state))
if next < 0 then
  redis.call('ZREM', occurrences, name)
else
  redis.call('ZADD', occurrences, text(next), name)
end
if is_live then
  return 'LIVE'
end
if id then
  local _, _, run, version, _, _, payload = read_head(record)
  local way = schedule_of(payload)
  local at = due_at(due)
  local head = redis.call('ZRANGE', way, 0, 0, 'WITHSCORES')
  redis.call('HSETNX', templates, template, body)
  redis.call('HINCRBY', template_uses, template, 1)
  redis.call('ZADD', way, text(at), id)
  redis.call('HSET', entries, id, record)
  write_journal('SCHEDULED', { id .. '\t' .. run .. '\t' .. version .. '\t' .. text(at) .. '\t' .. story })
  if at < (tonumber(head[2]) or math.huge) then
    wake_leader()
  end
end
return 'OK'
