--- Take due entries out under a claim, for a beat to publish their messages.
-- @include clock journal tombstones records messages quarantine keys unique sides limits gates due looking
-- @allow-oom
-- KEYS: mark schedule outbound entries blocked gates gated gate_of buckets claims claimed attempts quarantine templates template_uses journal tombstones_even tombstones_odd uniques unique_ends
-- ARGV: now:int:ms tombstone_ms:int:ms journal_max:int:events epoch:int limit:int:entries hold_ms:int:ms steal_ms:int:ms latest_ms:int:ms ttl:int:ms token:str from:str limits:str
--   hold_ms, steal_ms, latest_ms  as in move.lua; the leader's progress here is a mark of its own
--   ttl    the claim ends so much later, unless it is acked or given back before
--   token  names this claim
--   from   "outbound", or "schedule" where no move is possible
--   limits see include/limits.lua; "rooms" in it tells what queues have room for, as far as known
-- RETURNS: EPOCH now | STANDBY now | JUMPED now
--   | OK now next_due_ms expired quarantined blocked error gated, and per claimed entry:
--     id run version due_ms attempt message
--   next_due_ms is -1 when nothing waits; attempt counts the claims that ended in silence.

now = time_ms(now)
local source = from == 'schedule' and schedule or outbound
local progress = from == 'schedule' and 'progress' or 'published'
local refused = refusal(progress)
if refused then
  return refused
end

room_in = function(shape)
  return rooms[shape.queue_name] or math.huge
end

local taken = {}
local ids = each_due(source, now - hold_ms - steal_ms, limit, function(entry, shape)
  entry.message = message_of(entry, shape, epoch)
  if entry.message then
    taken[#taken + 1] = entry
  end
end)
if #ids == 0 then
  return { 'OK', text(now), next_due(source), 0, 0, 0, '', 0 }
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
local told = { 'OK', text(now), next_due(source), #expired, #bad, #stuck, failure, kept }
for _, part in ipairs(answer) do
  told[#told + 1] = part
end
return told
