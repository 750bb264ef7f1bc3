--- Give a waiting entry another message.
-- @include clock journal tombstones records quarantine ways sides places templates wake timely going
-- KEYS: mark schedule outbound entries blocked held gated gate_of claimed attempts quarantine templates template_uses journal tombstones_even tombstones_odd wake
-- ARGV: now:int:ms tombstone_ms:int:ms journal_max:int:events epoch:int deadline:int:ms operation:str task_id:str digest:str record:str data:str template:str template_cap:int:templates
--   epoch      0: any
--   deadline   until when this call may be repeated; an attempt that arrives later does nothing
--   operation  names this call; a repeat gets the answer of the first attempt
--   digest     that of the record out of which the new message was made; what has become of the
--              entry's eta, place and version since does not matter
--   record     bears the new message; its run says which entry, its deadline is not looked at
--   data       the new story, who and why, as JSON, for the journal
--   template   the text of the record's template, if it was asked for; else ""
-- RETURNS: EPOCH now | LATE now | TOO_LATE now | NOT_FOUND now | DAMAGED now (it can only be cancelled)
--   | STALE now (it has got another message meanwhile) | TEMPLATE now (repeat with its text)
--   | INLINE now (there is no room: repeat with the template in the record) | DONE now version

now = time_ms(now)
local untimely = why_untimely()
if untimely then
  return { untimely, text(now) }
end
local answered = buried('o/' .. operation)[1]
if answered then
  return { 'DONE', text(now), answered }
end
local _, new_digest, run, _, _, expires, payload = read_head(record)
if not run then
  return redis.error_reply('MALFORMED record of ' .. task_id)
end
local before = redis.call('HGET', entries, task_id)
local at = eta_of(task_id)
local silent, why = 0, nil
if is_going(task_id, before) then
  return { 'TOO_LATE', text(now) }
end
if not at then
  at, before, silent, why = read_parked(task_id)
  if not at then
    return { gone(task_id, run) >= 0 and 'TOO_LATE' or 'NOT_FOUND', text(now) }
  end
end
if silent > 0 then
  -- parked after a claim that nobody told the end of: its message may be on its queue
  return { 'TOO_LATE', text(now) }
end
local _, version = next_version(before or '')
if not version then
  return { 'DAMAGED', text(now) }
end
local _, old_digest, live_run, _, deadline_of_add, _, old_payload = read_head(before)
if live_run ~= run or old_digest ~= digest then
  return { 'STALE', text(now) }
end
at = text(tonumber(at))
local id = template_of(payload)
local is_inline = string.sub(id, 1, 1) == '='
local is_known = is_inline or redis.call('HEXISTS', templates, id) == 1
if not is_known and template == '' then
  return { 'TEMPLATE', text(now) }
end
if not is_known and not have_room(1, { [id] = true }) then
  return { 'INLINE', text(now) }
end

-- every check is behind us: write
if not is_known then
  redis.call('HSET', templates, id, template)
end
if not is_inline then
  redis.call('HINCRBY', template_uses, id, 1)
end
release_template(old_payload)
-- a repeat of its add is still known by the deadline
local changed = table.concat({ CODEC .. ' ' .. new_digest, run, version, deadline_of_add, expires,
  payload }, '\n')
local state = 'SCHEDULED'
if why then
  state = 'QUARANTINED'
  data = string.sub(data, 1, -2) .. ',"error":' .. cjson.encode(why) .. '}'
  put_in_quarantine(task_id, why, at, changed)
else
  redis.call('HSET', entries, task_id, changed)
  if redis.call('ZSCORE', held, task_id) then
    state = 'HELD'
  elseif not redis.call('ZSCORE', blocked, task_id) then
    local way = schedule_of(payload)
    if not redis.call('ZSCORE', way, task_id) then
      local head = redis.call('ZRANGE', way, 0, 0, 'WITHSCORES')[2]
      take_away(task_id)
      redis.call('ZADD', way, at, task_id)
      if tonumber(at) < (tonumber(head) or math.huge) then
        wake_leader()
      end
    end
  end
end
bury('o/' .. operation, version)
write_journal(state, { task_id .. '\t' .. run .. '\t' .. version .. '\t' .. at .. '\t' .. data })
return { 'DONE', text(now), version }
