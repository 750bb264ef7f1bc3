--- Return blocked entries to the schedule, and forget keys that have ended: a bounded number.
-- @include clock records ways keys leading
-- @allow-oom
-- KEYS: mark lease schedule outbound entries blocked template_uses uniques unique_ends
-- ARGV: now:int:ms epoch:int term:int limit:int:entries
-- RETURNS: EPOCH | TERM | number of entries returned

local refused = why_not_leading()
if refused then
  return refused
end
now = time_ms(now)
local over = redis.call('ZRANGE', unique_ends, '-inf', text(now), 'BYSCORE', 'LIMIT', 0, limit)
for _, field in ipairs(over) do
  free_key(field)
end
-- What is still blocked comes back here, to the place where it stood.  So this goes through
-- all of them in turn; else the first ones would keep those behind them waiting for ever.
local before = tonumber(redis.call('HGET', mark, 'merged') or 0)
local from = before
local waiting = redis.call('ZRANGE', blocked, from, from + limit - 1, 'WITHSCORES')
if #waiting == 0 and from > 0 then
  from = 0
  waiting = redis.call('ZRANGE', blocked, 0, limit - 1, 'WITHSCORES')
end
if #waiting > 0 or before > 0 then
  redis.call('HSET', mark, 'merged', text(from + #waiting / 2))
end
for i = 1, #waiting, 2 do
  local _, _, _, _, _, _, payload = read_head(redis.call('HGET', entries, waiting[i]) or '')
  redis.call('ZADD', payload and schedule_of(payload) or schedule, waiting[i + 1], waiting[i])
  redis.call('ZREM', blocked, waiting[i])
end
return #waiting / 2
