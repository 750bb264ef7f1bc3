--- Remove a periodic schedule that was added at run time.
-- @include clock tombstones schedules timely
-- @allow-oom
-- KEYS: mark definitions statics schedules occurrences tombstones_even tombstones_odd
-- ARGV: now:int:ms tombstone_ms:int:ms epoch:int deadline:int:ms operation:str name:str
--   epoch      0: any
--   deadline   until when this call may be repeated; an attempt that arrives later does nothing
--   operation  names this call; a repeat gets the answer of the first attempt
-- RETURNS: EPOCH now | LATE now | NOT_FOUND now
--   | STATIC now (code has it, so it would come back) | DONE now

now = time_ms(now)
local untimely = why_untimely()
if untimely then
  return { untimely, text(now) }
end
if buried('o/' .. operation)[1] then
  return { 'DONE', text(now) }
end
local is_static = redis.call('HEXISTS', statics, name) == 1
if redis.call('HEXISTS', definitions, name) == 0 then
  return { is_static and 'STATIC' or 'NOT_FOUND', text(now) }
end

-- every check is behind us: write
redis.call('HDEL', definitions, name)
if not is_static then
  redis.call('HDEL', schedules, name)
  redis.call('ZREM', occurrences, name)
end
changed()
bury('o/' .. operation, '')
return { 'DONE', text(now) }
