--- Give the lease back and wake one standby.
-- @allow-oom
-- KEYS: lease handover
-- ARGV: holder:str term:int
-- RETURNS: 1 given back | 0 it was not (or no longer) this holder's

local lease_now = redis.call('HMGET', lease, 'holder', 'term')
if lease_now[1] ~= holder or tonumber(lease_now[2]) ~= term then
  return 0
end
redis.call('HSET', lease, 'holder', '')
-- a list of at most one token; should nobody wait, the next standby to come takes it
redis.call('LPUSH', handover, '1')
redis.call('LTRIM', handover, 0, 0)
return 1
