--- Change when a waiting entry is due, and whether it is held.
-- @include clock instants journal tombstones records quarantine ways sides places wake placing timely going
-- @allow-oom
-- KEYS: mark schedule outbound entries blocked held gated gate_of claimed attempts quarantine template_uses journal tombstones_even tombstones_odd wake
-- ARGV: now:int:ms tombstone_ms:int:ms journal_max:int:events epoch:int deadline:int:ms operation:str task_id:str run:int due:str hold:str data:str
--   epoch      0: any
--   deadline   until when this call may be repeated; an attempt that arrives later does nothing
--   operation  names this call; a repeat gets the answer of the first attempt
--   run        0: not known; else the run that the caller believes to wait
--   due        "" as it is; "@" instant; "+" delay; "~" shift of the eta; each in ms
--   hold       "" as it is; "1" held; "0" in its schedule
--   data       who and why, as JSON, for the journal
-- RETURNS: EPOCH now | LATE now | TOO_LATE now | NOT_FOUND now
--   | QUARANTINED now (release it first) | DAMAGED now (it can only be cancelled)
--   | DONE now due_ms expires_ms   expires_ms is 0 for never

now = time_ms(now)
local untimely = why_untimely()
if untimely then
  return { untimely, text(now) }
end
local answered = buried('o/' .. operation)[1]
if answered then
  return { 'DONE', text(now), string.match(answered, '^(%d+) (%d+)$') }
end
local record = redis.call('HGET', entries, task_id)
if is_going(task_id, record) then
  return { 'TOO_LATE', text(now) }
end
local before = eta_of(task_id)
if not before then
  local answer = 'NOT_FOUND'
  if read_parked(task_id) then
    answer = 'QUARANTINED'
  elseif run > 0 and gone(task_id, text(run)) >= 0 then
    answer = 'TOO_LATE'
  end
  return { answer, text(now) }
end
local changed = next_version(record or '')
if not changed then
  return { 'DAMAGED', text(now) }
end
local _, _, _, _, _, expires = read_head(record)
before = tonumber(before)
local at = before
if string.sub(due, 1, 1) == '~' then
  at = before + tonumber(string.sub(due, 2))
elseif due ~= '' then
  at = due_at(due)
end
-- from 1970 to the last second of the year 9999, which is all that a datetime can say
at = math.min(math.max(0, at), 253402300799000)
local was_held = redis.call('ZSCORE', held, task_id) ~= false
local is_held = was_held
if hold ~= '' then
  is_held = hold == '1'
end
if at == before and due == '' and is_held == was_held then
  return { 'DONE', text(now), text(at), expires }
end

-- every check is behind us: write
bury('o/' .. operation, text(at) .. ' ' .. expires)
place_anew(task_id, changed, at, is_held, data)
return { 'DONE', text(now), text(at), expires }
