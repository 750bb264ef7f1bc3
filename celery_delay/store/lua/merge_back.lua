--- Return blocked entries to the schedule, a bounded number at a time.
-- @include clock
-- @allow-oom
-- KEYS: mark lease schedule blocked wake
-- ARGV: epoch:int term:int limit:int:entries
-- RETURNS: EPOCH | TERM | number of entries returned

if tonumber(redis.call('HGET', mark, 'epoch') or 0) ~= epoch then
  return 'EPOCH'
end
if tonumber(redis.call('HGET', lease, 'term') or 0) ~= term then
  return 'TERM'
end
local waiting = redis.call('ZRANGE', blocked, 0, limit - 1, 'WITHSCORES')
for i = 1, #waiting, 2 do
  redis.call('ZADD', schedule, waiting[i + 1], waiting[i])
  redis.call('ZREM', blocked, waiting[i])
end
return #waiting / 2
