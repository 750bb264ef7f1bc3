--- Return entries to their schedule that an operator held, or that could not be handed off.
-- @include clock journal tombstones records quarantine ways sides places wake timely
-- @allow-oom
-- KEYS: mark schedule outbound entries blocked held gated gate_of claimed attempts quarantine templates template_uses journal tombstones_even tombstones_odd wake
-- ARGV: now:int:ms tombstone_ms:int:ms journal_max:int:events epoch:int deadline:int:ms operation:str data:str rest:*
--   epoch      0: any
--   deadline   until when this call may be repeated; an attempt that arrives later does nothing
--   operation  names this call; a repeat gets the answer of the first attempt
--   data       who and why, as JSON, for the journal
--   rest = task ids
-- RETURNS: EPOCH | LATE | one letter per id: S scheduled, N neither held nor in quarantine,
--   D damaged (it stays), L another entry of this id is live (it stays)

now = time_ms(now)
local untimely = why_untimely()
if untimely then
  return untimely
end
local answered = buried('o/' .. operation)[1]
if answered then
  return answered
end
local codes, lines = {}, {}
for i, id in ipairs(rest) do
  local eta, record, silent = redis.call('ZSCORE', held, id), nil, 0
  local is_held = eta ~= false
  if is_held then
    record = redis.call('HGET', entries, id)
  else
    eta, record, silent = read_parked(id)
  end
  local _, _, run, _, _, _, payload = read_head(record or '')
  local template = payload and template_of(payload)
  local changed, version = next_version(record or '')
  if not record and not is_held then
    codes[i] = 'N'
  elseif not changed or (string.sub(template, 1, 1) ~= '='
    and redis.call('HEXISTS', templates, template) == 0) then
    codes[i] = 'D'
  elseif not is_held and (eta_of(id) or redis.call('HEXISTS', entries, id) == 1
    or redis.call('HEXISTS', claimed, id) == 1) then
    codes[i] = 'L'
  else
    codes[i] = 'S'
    redis.call('ZREM', held, id)
    if not is_held then
      redis.call('HDEL', quarantine, id)
    end
    redis.call('HSET', entries, id, changed)
    if silent > 0 then
      redis.call('HSET', attempts, id, text(silent))
    end
    redis.call('ZADD', schedule_of(payload), eta, id)
    lines[#lines + 1] = id .. '\t' .. run .. '\t' .. version .. '\t' .. eta .. '\t' .. data
  end
end
local answer = table.concat(codes)
if #lines > 0 then
  bury('o/' .. operation, answer)
  wake_leader()
end
write_journal('SCHEDULED', lines)
return answer
