--- Open a gate that was closed: what waits at it comes back, at once or spread over time.
-- @include clock tombstones sides wake
-- @allow-oom
-- KEYS: gates gated gate_of tombstones_even tombstones_odd wake
-- ARGV: now:int:ms tombstone_ms:int:ms deadline:int:ms operation:str gate:str over:int:ms
--   deadline   until when this call may be repeated; an attempt that arrives later does nothing
--   operation  names this call; a repeat gets the answer of the first attempt
--   over       in how long all that waits has come back; 0: as soon as can be
-- RETURNS: LATE now | NOT_PAUSED now | RESUMED now waiting

now = time_ms(now)
if now > deadline then
  return { 'LATE', text(now) }
end
local answered = buried('o/' .. operation)[1]
if answered then
  return { 'RESUMED', text(now), answered }
end
local known = redis.call('HGET', gates, gate)
local letter = known and string.sub(known, 1, 1)
if letter ~= 'P' and letter ~= 'R' then
  return { 'NOT_PAUSED', text(now) }
end
local waiting = redis.call('ZCARD', side_of(gate))
if waiting == 0 then
  redis.call('HDEL', gates, gate)
else
  local said = cjson.decode(string.sub(known, 2))
  said.released, said.over, said.total = now, over, waiting
  redis.call('HSET', gates, gate, 'R' .. cjson.encode(said))
end
bury('o/' .. operation, text(waiting))
wake_leader()
return { 'RESUMED', text(now), text(waiting) }
