--- Bring an entry that SQL backs to SQL's version; or see that lower ones cannot come any more.
-- @include clock journal tombstones records quarantine ways sides places keys unique templates wake going backed
-- @allow-oom
-- KEYS: mark schedule outbound entries blocked held gated gate_of claimed attempts quarantine templates template_uses journal tombstones_even tombstones_odd wake uniques unique_ends
-- ARGV: now:int:ms tombstone_ms:int:ms journal_max:int:events epoch:int task_id:str due:str cold:int:flag record:str template:str template_cap:int:templates release:int:flag data:str
--   epoch     that in which the version was decided
--   due       "@" instant, or "#" instant for one that is held, in ms
--   cold      whether it is to wait in SQL alone
--   record    bears the version and its message
--   template  the text of the record's template, if it was asked for; else ""
--   release   whether one that is parked goes back to its schedule
--   data      who and why, as JSON, for the journal
-- RETURNS: EPOCH now | GONE now (handed off, or ended otherwise) | GOING now (being published)
--   | ABSENT now (lower versions are kept out) | STALE now version (it has that one, another)
--   | TEMPLATE now (repeat with its text) | INLINE now (repeat with the template in the record)
--   | OK now

now = time_ms(now)
if is_elsewhere() then
  return { 'EPOCH', text(now) }
end
local _, new_digest, run, version, _, _, payload = read_head(record)
if not run then
  return redis.error_reply('MALFORMED record of ' .. task_id)
end
local superseded = 's/' .. task_id .. '/' .. run
local before = redis.call('HGET', entries, task_id)
if is_going(task_id, before) then
  return { 'GOING', text(now) }
end
local at, silent, why = eta_of(task_id), 0, nil
if not before then
  at, before, silent, why = read_parked(task_id)
end
local _, old_digest, live_run, live_version, _, _, old_payload = read_head(before or '')
if not before or (live_run and live_run ~= run) then
  if has_left(task_id, run, 0) then
    return { 'GONE', text(now) }
  end
  bury(superseded, version)
  return { 'ABSENT', text(now) }
end
if silent and silent > 0 then
  -- parked after a claim that nobody told the end of: its message may be on its queue
  return { 'GOING', text(now) }
end
local is_cold, is_held = cold == 1, string.sub(due, 1, 1) == '#'
local eta = tonumber(string.sub(due, 2))
if live_version and tonumber(live_version) >= tonumber(version) then
  local is_same = not is_cold and live_version == version and old_digest == new_digest and tonumber(at) == eta
    and (why or is_held == (redis.call('ZSCORE', held, task_id) ~= false))
  return is_same and { 'OK', text(now) } or { 'STALE', text(now), live_version }
end
local id = template_of(payload)
local is_inline = is_cold or string.sub(id, 1, 1) == '='
local is_known = is_inline or redis.call('HEXISTS', templates, id) == 1
if not is_known and template == '' then
  return { 'TEMPLATE', text(now) }
end
if not is_known and not have_room(1, { [id] = true }) then
  return { 'INLINE', text(now) }
end

-- every check is behind us: write
local state = is_held and 'HELD' or 'SCHEDULED'
if old_payload and is_whole(old_payload, old_digest) then
  release_template(old_payload)
end
if not is_known then
  redis.call('HSET', templates, id, template)
end
if not is_inline then
  redis.call('HINCRBY', template_uses, id, 1)
end
take_away(task_id)
if is_cold then
  redis.call('HDEL', entries, task_id)
  redis.call('HDEL', quarantine, task_id)
  bury(superseded, version)
elseif why and release == 0 then
  state = 'QUARANTINED'
  data = string.sub(data, 1, -2) .. (data == '{}' and '' or ',') .. '"error":' .. cjson.encode(why) .. '}'
  put_in_quarantine(task_id, why, text(eta), record)
else
  local place = is_held and held or schedule_of(payload)
  local is_earlier = not is_held and eta < heads_of_ways()[place]
  redis.call('HDEL', quarantine, task_id)
  redis.call('HSET', entries, task_id, record)
  redis.call('ZADD', place, text(eta), task_id)
  if is_earlier then
    wake_leader()
  end
end
write_journal(state, { task_id .. '\t' .. run .. '\t' .. version .. '\t' .. text(eta) .. '\t' .. data })
return { 'OK', text(now) }
