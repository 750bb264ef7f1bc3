--- Take note that a worker lives, or that it ends.
-- @include clock
-- @allow-oom
-- KEYS: served workers
-- ARGV: now:int:ms forget_ms:int:ms worker:str rest:*
--   forget_ms  workers and queues of which nothing was heard for so long are forgotten
--   rest = the queues that it takes messages from; none: it ends
-- RETURNS: now

now = time_ms(now)
if #rest == 0 then
  redis.call('ZREM', workers, worker)
else
  redis.call('ZADD', workers, text(now), worker)
end
for _, queue in ipairs(rest) do
  redis.call('HSET', served, queue, text(now))
end
local old = redis.call('ZRANGE', workers, '-inf', text(now - forget_ms), 'BYSCORE', 'LIMIT', 0, 100)
if #old > 0 then
  redis.call('ZREM', workers, unpack(old))
end
local queues = redis.call('HGETALL', served)
for i = 1, #queues, 2 do
  if tonumber(queues[i + 1]) <= now - forget_ms then
    redis.call('HDEL', served, queues[i])
  end
end
return text(now)
