--- Forget claimed entries whose messages the broker has.
-- @include clock journal records keys unique claims handed_off
-- @allow-oom
-- KEYS: mark claims claimed attempts template_uses journal uniques unique_ends
-- ARGV: now:int:ms journal_max:int:events token:str rest:*
--   token  the claim's; an entry under another claim is left alone, whatever the epoch
--   rest = task ids
-- RETURNS: number of entries forgotten

now = time_ms(now)
local lines = {}
for _, id in ipairs(rest) do
  local holder, _, eta, record = read_claim(id)
  if holder == token then
    lines[#lines + 1] = handed_off(id, eta, record)
  end
end
write_journal('DISPATCHED', lines)
return #lines
