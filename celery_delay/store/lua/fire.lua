--- Fire one occurrence: advance the schedule's cursor and add its entry, in one step.
-- @include clock instants journal records ways wake schedules gaps occurrence leading
-- @allow-oom
-- KEYS: mark lease schedules occurrences schedule outbound entries claimed templates template_uses journal wake
-- ARGV: now:int:ms journal_max:int:events epoch:int term:int revision:int name:str expected:int:ms cursor:int:ms next:int:ms missed_from:int:ms missed_to:int:ms rest:*
--   revision     that of the schedules as the caller knows them
--   next         the occurrence after this one; -1 for none
--   missed_from  the first instant that is passed over, missed_to that after the last; 0 for none
--   rest = nothing (only advance), or (task id, due: "@" instant or "+" delay in ms, record,
--          story as JSON, template id, template)
-- RETURNS: EPOCH | TERM | STALE (somebody has changed the schedules since)
--   | FIRED (by another, or gone) | OK
--   | LIVE (advanced, but an entry of this id waits already)

local refused = why_not_leading()
if refused then
  return refused
end
if revision_now() ~= revision then
  return 'STALE'
end
if tonumber(redis.call('ZSCORE', occurrences, name) or -1) ~= expected then
  return 'FIRED'
end
now = time_ms(now)
local id = rest[1]
local was_live = id and is_live(id)
local state = read_state(name)
state.cursor = text(cursor)
if id then
  state.fired = state.cursor
end
if missed_from < missed_to then
  state.gaps = with_gap(state.gaps, text(missed_from), text(missed_to))
end
write_state(name, state)
if next < 0 then
  redis.call('ZREM', occurrences, name)
else
  redis.call('ZADD', occurrences, text(next), name)
end
if was_live then
  return 'LIVE'
end
if id then
  add_occurrence(unpack(rest))
end
return 'OK'
