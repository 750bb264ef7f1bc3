--- Pause a periodic schedule, or let it go on.
-- @include clock tombstones schedules timely
-- @allow-oom
-- KEYS: mark schedules definitions statics tombstones_even tombstones_odd
-- ARGV: now:int:ms tombstone_ms:int:ms epoch:int deadline:int:ms operation:str name:str pause:int:flag known:int:flag by:str reason:str
--   epoch      0: any
--   deadline   until when this call may be repeated; an attempt that arrives later does nothing
--   operation  names this call; a repeat gets the answer of the first attempt
--   known      the caller's code has this schedule, whether or not a beat has ever led
-- RETURNS: EPOCH now | LATE now | NOT_FOUND now
--   | DONE now | SAME now (it was as the caller wants it)

now = time_ms(now)
local untimely = why_untimely()
if untimely then
  return { untimely, text(now) }
end
local answered = buried('o/' .. operation)[1]
if answered then
  return { answered, text(now) }
end
local state = read_state(name)
if known == 0 and not state.paused and redis.call('HEXISTS', definitions, name) == 0
  and redis.call('HEXISTS', statics, name) == 0 then
  return { 'NOT_FOUND', text(now) }
end
local answer = (state.paused ~= nil) == (pause == 1) and 'SAME' or 'DONE'

-- every check is behind us: write
if answer == 'DONE' then
  if pause == 1 then
    state.paused, state.by, state.reason = text(now), by, reason
  else
    state.paused, state.by, state.reason, state.resumed = nil, nil, nil, text(now)
  end
  write_state(name, state)
  changed()
end
bury('o/' .. operation, answer)
return { answer, text(now) }
