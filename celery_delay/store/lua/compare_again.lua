--- Let a Redis history be compared with SQL once more; with sync set, nothing is moved until then.
-- @allow-oom
-- KEYS: mark
-- ARGV: epoch:int sync:int:flag
-- RETURNS: EPOCH | OK

if tonumber(redis.call('HGET', mark, 'epoch') or 0) ~= epoch then
  return 'EPOCH'
end
redis.call('HDEL', mark, 'compared')
if sync == 1 then
  redis.call('HSET', mark, 'unready', '1')
end
return 'OK'
