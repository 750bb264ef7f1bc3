--- Note how many entries wait in SQL alone, for whoever watches Redis.
-- @allow-oom
-- KEYS: mark
-- ARGV: epoch:int number:int:entries
-- RETURNS: EPOCH | OK

if tonumber(redis.call('HGET', mark, 'epoch') or 0) ~= epoch then
  return 'EPOCH'
end
redis.call('HSET', mark, 'cold', string.format('%.0f', number))
return 'OK'
