--- Return entries to their schedule whose claimant has died, or does not know what became of them.
-- @include clock journal records quarantine ways claims
-- @allow-oom
-- KEYS: mark schedule outbound entries claims claimed attempts quarantine template_uses journal
-- ARGV: now:int:ms journal_max:int:events epoch:int latest_ms:int:ms limit:int:entries
--   latest_ms  nothing is done when the time is later: the clock has jumped; 0 for any time
-- RETURNS: EPOCH | number of entries returned

now = time_ms(now)
if tonumber(redis.call('HGET', mark, 'epoch') or 0) ~= epoch then
  return 'EPOCH'
end
if latest_ms > 0 and now > latest_ms then
  return 0
end
local over, lines = redis.call('ZRANGE', claims, '-inf', text(now), 'BYSCORE', 'LIMIT', 0, limit), {}
for _, id in ipairs(over) do
  local _, _, eta, record = read_claim(id)
  local _, _, _, _, _, _, payload = read_head(record or '')
  end_claim(id)
  if payload then
    redis.call('HSET', entries, id, record)
    redis.call('ZADD', schedule_of(payload), eta, id)
    -- its message may be on its queue: the next one says which attempt it is
    redis.call('HINCRBY', attempts, id, 1)
  else
    local why = 'the record is damaged'
    put_in_quarantine(id, why, eta or text(now), record or '')
    lines[#lines + 1] = id .. '\t0\t0\t' .. (eta or '') .. '\t' .. cjson.encode({ error = why })
  end
end
write_journal('QUARANTINED', lines)
return #over
