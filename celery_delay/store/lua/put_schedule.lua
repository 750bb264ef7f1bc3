--- Add a periodic schedule at run time, or change one that was.
-- @include clock tombstones schedules timely
-- KEYS: mark definitions statics schedules occurrences tombstones_even tombstones_odd
-- ARGV: now:int:ms tombstone_ms:int:ms epoch:int deadline:int:ms operation:str name:str how:str expected:int most:int:schedules timing:str call:str
--   epoch      0: any
--   deadline   until when this call may be repeated; an attempt that arrives later does nothing
--   operation  names this call; a repeat gets the answer of the first attempt
--   how        "add": there must be none; "put": whether or not there is one; "set": there must
--              be one of the version expected
--   most       how many there may be
--   timing     its times: with others it starts anew, from now
--   call       all the rest
-- RETURNS: EPOCH now | LATE now | STATIC now (code has one of this name)
--   | EXISTS now | NOT_FOUND now | STALE now | FULL now
--   | SAME now version (it was just so) | DONE now version

now = time_ms(now)
local untimely = why_untimely()
if untimely then
  return { untimely, text(now) }
end
local answered = buried('o/' .. operation)[1]
if answered then
  return { 'DONE', text(now), answered }
end
if redis.call('HEXISTS', statics, name) == 1 then
  return { 'STATIC', text(now) }
end
local stored = redis.call('HGET', definitions, name)
if stored and how == 'add' then
  return { 'EXISTS', text(now) }
elseif not stored and how == 'set' then
  return { 'NOT_FOUND', text(now) }
elseif not stored and redis.call('HLEN', definitions) >= most then
  return { 'FULL', text(now) }
end
local version, anchor, timing_before, call_before =
  string.match(stored or '', '^(%d+)\n(%d+)\n([^\n]*)\n([^\n]*)$')
version = tonumber(version or 0)
if how == 'set' and version ~= expected then
  return { 'STALE', text(now) }
end
if stored and timing == timing_before and call == call_before then
  return { 'SAME', text(now), text(version) }
end

-- every check is behind us: write
if timing ~= timing_before then
  anchor = text(now)
  redis.call('ZREM', occurrences, name)
end
if not stored then
  -- a pause may be left of a name that code had once
  redis.call('HDEL', schedules, name)
end
version = text(version + 1)
redis.call('HSET', definitions, name, table.concat({ version, anchor, timing, call }, '\n'))
changed()
bury('o/' .. operation, version)
return { 'DONE', text(now), version }
