--- Return quarantined entries to their schedule, as an operator asks.
-- @include clock journal records quarantine ways
-- @allow-oom
-- KEYS: mark schedule outbound entries claimed attempts quarantine templates template_uses journal wake
-- ARGV: now:int:ms journal_max:int:events rest:*
--   rest = task ids
-- RETURNS: one letter per id: S scheduled, N not in quarantine, D damaged (it stays),
--   L another entry of this id is live (it stays)

now = time_ms(now)
local codes, lines = {}, {}
for i, id in ipairs(rest) do
  local eta, record, silent = read_parked(id)
  local codec, digest, run, version, deadline, expires, payload = read_head(record or '')
  local template = payload and template_of(payload)
  if not record then
    codes[i] = 'N'
  elseif codec ~= CODEC or not is_whole(payload, digest)
    or (string.sub(template, 1, 1) ~= '=' and redis.call('HEXISTS', templates, template) == 0) then
    codes[i] = 'D'
  elseif eta_of(id) or redis.call('HEXISTS', entries, id) == 1
    or redis.call('HEXISTS', claimed, id) == 1 then
    codes[i] = 'L'
  else
    codes[i] = 'S'
    version = text(tonumber(version) + 1)
    record = codec .. ' ' .. digest .. '\n' .. run .. '\n' .. version .. '\n' .. deadline .. '\n'
      .. expires .. '\n' .. payload
    redis.call('HDEL', quarantine, id)
    redis.call('HSET', entries, id, record)
    if silent > 0 then
      redis.call('HSET', attempts, id, text(silent))
    end
    redis.call('ZADD', schedule_of(payload), eta, id)
    lines[#lines + 1] = id .. '\t' .. run .. '\t' .. version .. '\t' .. eta .. '\t{}'
  end
end
if #lines > 0 then
  redis.call('LPUSH', wake, '1')
  redis.call('LTRIM', wake, 0, 0)
end
write_journal('SCHEDULED', lines)
return table.concat(codes)
