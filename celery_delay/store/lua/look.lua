--- Where entries that SQL backs are in Redis.
-- @include clock records quarantine claims
-- @allow-oom
-- KEYS: mark entries claims claimed attempts quarantine template_uses
-- ARGV: now:int:ms epoch:int rest:*
--   rest = (task id, run) pairs
-- RETURNS: EPOCH now | OK now, and per entry a letter, " " and its version, 0 if not known: L live,
--   C being published, or nobody knows how far that came, P parked, - absent

now = time_ms(now)
if tonumber(redis.call('HGET', mark, 'epoch') or 0) ~= epoch then
  return { 'EPOCH', text(now) }
end
local found = { 'OK', text(now) }
for i = 1, #rest, 2 do
  local id, run = rest[i], rest[i + 1]
  local letter, record = 'L', redis.call('HGET', entries, id)
  local _, _, _, claimed_record = read_claim(id)
  if claimed_record then
    letter, record = 'C', claimed_record
  elseif record and redis.call('HEXISTS', attempts, id) == 1 then
    letter = 'C'
  elseif not record then
    letter, _, record = 'P', read_parked(id)
  end
  local _, _, its_run, version = read_head(record or '')
  if not record or (its_run and its_run ~= run) then
    letter, version = '-', '0'
  end
  found[#found + 1] = letter .. ' ' .. (version or '0')
end
return found
