--- Tell which schedules are due, and the revision of all of them.
-- @include clock
-- @allow-oom
-- KEYS: mark occurrences
-- ARGV: now:int:ms limit:int:schedules
-- RETURNS: revision now next_ms name due_ms…   the due ones, the longest overdue first; next_ms is
--   that of the first that is not due yet, or -1

now = time_ms(now)
local answer = {
  redis.call('HGET', mark, 'revision') or '0',
  text(now),
  redis.call('ZRANGE', occurrences, '(' .. text(now), '+inf', 'BYSCORE', 'LIMIT', 0, 1,
    'WITHSCORES')[2] or '-1',
}
local due = redis.call('ZRANGE', occurrences, '-inf', text(now), 'BYSCORE', 'LIMIT', 0, limit,
  'WITHSCORES')
for _, part in ipairs(due) do
  answer[#answer + 1] = part
end
return answer
