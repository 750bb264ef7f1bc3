--- Remember that tasks are revoked, for workers that take their messages later.
-- @include clock
-- @allow-oom
-- KEYS: mark revoked
-- ARGV: now:int:ms epoch:int keep_ms:int:ms most:int:tasks rest:*
--   epoch    0: any
--   keep_ms  marks that are older than this are forgotten, a hundred in a call
--   most     of more marks than this the oldest are forgotten, a thousand in a call
--   rest = task ids
-- RETURNS: EPOCH | now
--   A repeat only makes the marks a little younger.

now = time_ms(now)
if epoch > 0 and tonumber(redis.call('HGET', mark, 'epoch') or 0) ~= epoch then
  return 'EPOCH'
end
local old = redis.call('ZRANGE', revoked, '-inf', text(now - keep_ms), 'BYSCORE', 'LIMIT', 0, 100)
if #old > 0 then
  redis.call('ZREM', revoked, unpack(old))
end
for _, id in ipairs(rest) do
  redis.call('ZADD', revoked, text(now), id)
end
local surplus = redis.call('ZCOUNT', revoked, '-inf', '+inf') - most
if surplus > 0 then
  redis.call('ZREM', revoked, unpack(redis.call('ZRANGE', revoked, 0, math.min(surplus, 1000) - 1)))
end
return text(now)
