--- Take entries out that SQL says are over, or cold; nothing is journalled.
-- @include clock records quarantine sides places keys unique going tombstones backed
-- @allow-oom
-- KEYS: mark schedule outbound entries blocked held gated gate_of claimed attempts quarantine template_uses uniques unique_ends tombstones_even tombstones_odd
-- ARGV: now:int:ms tombstone_ms:int:ms epoch:int rest:*
--   rest = (task id, run, version) triples; an entry of another run, or a higher version, stays
-- RETURNS: EPOCH | number of entries taken out

now = time_ms(now)
if is_elsewhere() then
  return 'EPOCH'
end
local dropped = 0
for i = 1, #rest, 3 do
  local id, run, version = rest[i], rest[i + 1], tonumber(rest[i + 2])
  local record, eta = redis.call('HGET', entries, id), eta_of(id)
  if not record then
    eta, record = read_parked(id)
  end
  local _, digest, its_run, its_version, _, _, payload = read_head(record or '')
  if its_run == run and tonumber(its_version) <= version then
    take_away(id)
    redis.call('HDEL', entries, id)
    redis.call('HDEL', quarantine, id)
    redis.call('HDEL', attempts, id)
    if is_whole(payload, digest) then
      release_template(payload)
      leave_key(id, run, eta and text(tonumber(eta)) or '0', payload, false)
    end
    dropped = dropped + 1
  end
end
return dropped
