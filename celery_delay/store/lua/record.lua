--- Write transitions that happened outside the store (in workers) to the journal.
-- @include clock journal
-- @allow-oom
-- KEYS: mark journal
-- ARGV: now:int:ms journal_max:int:events missing:int:events rest:*
--   missing = how many the caller could not write before; rest = (state, lines) pairs
-- RETURNS: now

now = time_ms(now)
if missing > 0 then
  redis.call('HINCRBY', mark, 'gap', missing)
  if not journal_is_full() then
    tell_gap()
  end
end
for i = 1, #rest, 2 do
  local lines = {}
  for line in string.gmatch(rest[i + 1], '[^\n]+') do
    lines[#lines + 1] = line
  end
  write_journal(rest[i], lines)
end
return text(now)
