--- Say that a Redis history was compared with SQL: from now on what is due is moved in it.
-- KEYS: mark
-- ARGV: epoch:int
-- @allow-oom
-- RETURNS: EPOCH | OK

if tonumber(redis.call('HGET', mark, 'epoch') or 0) ~= epoch then
  return 'EPOCH'
end
redis.call('HSET', mark, 'compared', string.format('%.0f', epoch))
redis.call('HDEL', mark, 'unready')
return 'OK'
