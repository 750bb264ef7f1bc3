--- Take an entry out, or make sure that it cannot come any more.
-- @include clock journal tombstones records quarantine sides places keys unique taking timely going
-- @allow-oom
-- KEYS: mark schedule outbound entries blocked held gated gate_of claimed attempts quarantine templates template_uses journal tombstones_even tombstones_odd uniques unique_ends
-- ARGV: now:int:ms tombstone_ms:int:ms journal_max:int:events epoch:int deadline:int:ms task_id:str run:int data:str
--   epoch     0: any
--   deadline  until when this call may be repeated; an attempt that arrives later does nothing
--   run       0: not known; else the run of an add whose outcome is unknown
--   data      who and why, as JSON, for the journal
-- RETURNS: EPOCH now | LATE now | CANCELLED now run record template due_ms ("" if not known)
--   | CANCELLED now 0 (an earlier call did) | TOO_LATE now | NOT_FOUND now

now = time_ms(now)
local untimely = why_untimely()
if untimely then
  return { untimely, text(now) }
end
local record = redis.call('HGET', entries, task_id)
if is_going(task_id, record) then
  return { 'TOO_LATE', text(now) }
end
local found, refused_before = cancelled(task_id)
local refused = math.max(now, run, refused_before)
local due = eta_of(task_id)
local parked, silent = false, 0
if not record and not due then
  due, record, silent = read_parked(task_id)
  parked = record ~= nil
end
if record or due then
  record = record or ''
  due = due and text(tonumber(due)) or ''
  if parked then
    redis.call('HDEL', quarantine, task_id)
  end
  local live_run, version, stored
  live_run, version, stored, refused = take_out(task_id, record, due, data, refused)
  if silent > 0 and live_run then
    -- it is out of quarantine, but its message may be on its queue since an earlier attempt
    bury('g/' .. task_id .. '/' .. live_run, version)
    return { 'TOO_LATE', text(now) }
  end
  bury('c/' .. task_id, 'F ' .. text(refused))
  return { 'CANCELLED', text(now), live_run or '0', record, stored or '', due }
end
if run > 0 and gone(task_id, text(run)) >= 0 then
  return { 'TOO_LATE', text(now) }
end
bury('c/' .. task_id, (found or 'N') .. ' ' .. text(refused))
if found == 'F' then
  return { 'CANCELLED', text(now), '0' }
end
return { 'NOT_FOUND', text(now) }
