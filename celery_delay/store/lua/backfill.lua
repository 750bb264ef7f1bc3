--- Fire occurrences of the past that were not fired.
-- @include clock instants journal tombstones records ways wake schedules gaps occurrence timely
-- KEYS: mark schedules occurrences schedule outbound entries claimed templates template_uses journal wake tombstones_even tombstones_odd
-- ARGV: now:int:ms tombstone_ms:int:ms journal_max:int:events epoch:int deadline:int:ms operation:str name:str revision:int force:int:flag rest:*
--   epoch      0: any
--   deadline   until when this call may be repeated; an attempt that arrives later does nothing
--   operation  names this call; a repeat gets the answer of the first attempt
--   revision   that of the schedules as the caller knows them
--   force      those that were fired are fired again; their task ids are new
--   rest = per occurrence (instant in ms, that of the next one, task id, due: "@" instant or "+" delay
--          in ms, record, story as JSON, template id, template); ascending
-- RETURNS: EPOCH now | LATE now
--   | STALE now (somebody has changed the schedules since) | UNSEEN now (no beat has led with it yet)
--   | DONE now codes   per occurrence: A added, F fired before, N not yet: beats will fire it

now = time_ms(now)
local untimely = why_untimely()
if untimely then
  return { untimely, text(now) }
end
local answered = buried('o/' .. operation)[1]
if answered then
  return { 'DONE', text(now), answered }
end
if revision_now() ~= revision then
  return { 'STALE', text(now) }
end
local state = read_state(name)
if not state.since then
  return { 'UNSEEN', text(now) }
end

-- every check is behind us: write
local since, gaps = tonumber(state.since), state.gaps
local coming = tonumber(redis.call('ZSCORE', occurrences, name) or math.huge)
local codes = {}
for i = 1, #rest, 8 do
  local nominal, following, id = tonumber(rest[i]), tonumber(rest[i + 1]), rest[i + 2]
  local code = 'A'
  if nominal >= math.min(coming, now) then
    code = 'N'
  else
    if nominal < since then
      -- what came before it started was not fired by it: one gap more
      gaps = text(nominal) .. '-' .. text(since) .. ((gaps or '') ~= '' and ',' .. gaps or '')
      since = nominal
    end
    local missed
    gaps, missed = without(gaps, nominal, following)
    if is_live(id) or not (missed or force == 1) then
      code = 'F'
    end
  end
  if code == 'A' then
    add_occurrence(unpack(rest, i + 2, i + 7))
  end
  codes[#codes + 1] = code
end
state.since, state.gaps = text(since), gaps ~= '' and gaps or nil
write_state(name, state)
codes = table.concat(codes)
bury('o/' .. operation, codes)
return { 'DONE', text(now), codes }
