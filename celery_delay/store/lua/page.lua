--- Read the live entries that come next, in the order of their eta and id; changes nothing.
-- @include clock order
-- @allow-oom
-- KEYS: entries schedule outbound blocked held gated gate_of
-- ARGV: now:int:ms after_ms:int:ms after_id:str before_ms:int:ms limit:int:entries bytes:int:bytes state:str
--   after_ms  after_id   the position behind which to begin; no id: at that eta
--   before_ms the latest eta
--   bytes     records that are longer together end the page early; one is always in it
--   state     a letter: S all but those that are held; H only those; "" both
--   The letter of one that waits at a gate is G, and the gate's name follows it; S means it too.
-- RETURNS: MORE now [letter task_id eta_ms record]...   there is more behind the last one
--   | END now [letter task_id eta_ms record]...   there is nothing behind it

now = time_ms(now)
local answer = { 'END', text(now) }
local taken, size = 0, 0
local head, id, eta = next_head()
while head and taken < limit and (taken == 0 or size < bytes) do
  local record = redis.call('HGET', entries, id) or ''
  local gate = head.letter == 'G' and redis.call('HGET', gate_of, id)
  answer[#answer + 1] = head.letter .. (gate or '')
  answer[#answer + 1] = id
  answer[#answer + 1] = text(eta)
  answer[#answer + 1] = record
  taken, size, head.at = taken + 1, size + #record, head.at + 2
  head, id, eta = next_head()
end
if head then
  answer[1] = 'MORE'
end
return answer
