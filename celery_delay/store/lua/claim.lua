--- Take due entries out under a claim, for a beat to publish their messages.
-- @include clock journal tombstones records messages quarantine due
-- @allow-oom
-- KEYS: mark schedule outbound entries blocked claims claimed attempts quarantine templates template_uses journal tombstones_even tombstones_odd
-- ARGV: now:int:ms tombstone_ms:int:ms journal_max:int:events epoch:int limit:int:entries hold_ms:int:ms steal_ms:int:ms latest_ms:int:ms ttl:int:ms token:str from:str
--   hold_ms, steal_ms, latest_ms  as in move.lua; the leader's progress here is a mark of its own
--   ttl    the claim ends so much later, unless it is acked or given back before
--   token  names this claim
--   from   "outbound", or "schedule" where no move is possible
-- RETURNS: EPOCH now | STANDBY now | JUMPED now
--   | OK now next_due_ms expired quarantined blocked error, and per claimed entry:
--     id run version due_ms attempt message
--   next_due_ms is -1 when nothing waits; attempt counts the claims that ended in silence.

now = time_ms(now)
local source = from == 'schedule' and schedule or outbound
local progress = from == 'schedule' and 'progress' or 'published'
local refused = refusal(progress)
if refused then
  return refused
end

local due = due_entries(source, now - hold_ms - steal_ms, limit)
if #due == 0 then
  return { 'OK', text(now), next_due(source), 0, 0, 0, '' }
end
local ids, taken = {}, {}
for i, entry in ipairs(due) do
  ids[i] = entry.id
  local shape = shape_of_fit(entry)
  entry.message = shape and message_of(entry, shape, epoch)
  if entry.message then
    taken[#taken + 1] = entry
  end
end

redis.call('ZREM', source, unpack(ids))
local answer = {}
for _, entry in ipairs(taken) do
  local attempt = redis.call('HGET', attempts, entry.id) or '0'
  redis.call('ZADD', claims, text(now + ttl), entry.id)
  redis.call('HSET', claimed, entry.id,
    token .. ' ' .. attempt .. ' ' .. text(entry.due) .. '\n' .. entry.record)
  leave(entry)
  for _, part in ipairs({ entry.id, entry.run, entry.version, text(entry.due), attempt, entry.message }) do
    answer[#answer + 1] = part
  end
end
local failure = finish()
local told = { 'OK', text(now), next_due(source), #expired, #bad, #stuck, failure }
for _, part in ipairs(answer) do
  told[#told + 1] = part
end
return told
