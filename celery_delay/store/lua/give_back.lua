--- Put claimed entries back whose messages the broker has certainly not taken.
-- @include clock journal records quarantine ways claims
-- @allow-oom
-- KEYS: mark schedule outbound entries blocked claims claimed attempts quarantine template_uses journal
-- ARGV: now:int:ms journal_max:int:events token:str rest:*
--   token  the claim's; an entry under another claim is left alone
--   rest = (task id, where, why)   where: "S" to its schedule; "B" among the blocked ones,
--          which are tried again later; "Q" into quarantine: no attempt would do better
-- RETURNS: number of entries put back

now = time_ms(now)
local lines, count = {}, 0
for i = 1, #rest, 3 do
  local id, where, why = rest[i], rest[i + 1], rest[i + 2]
  local holder, _, eta, record = read_claim(id)
  if holder == token then
    count = count + 1
    end_claim(id)
    local _, _, run, version, _, _, payload = read_head(record)
    if where == 'Q' then
      put_in_quarantine(id, why, eta, record)
      lines[#lines + 1] = id .. '\t' .. (run or '0') .. '\t' .. (version or '0') .. '\t' .. eta
        .. '\t' .. cjson.encode({ error = why })
    else
      redis.call('HSET', entries, id, record)
      redis.call('ZADD', where == 'B' and blocked or schedule_of(payload or ''), eta, id)
    end
  end
end
write_journal('QUARANTINED', lines)
return count
