--- Write transitions that happened outside the store (in workers) to the journal.
-- @include clock journal
-- @allow-oom
-- KEYS: mark journal
-- ARGV: now:int:ms journal_max:int:events rest:*
--   rest = (state, lines) pairs
-- RETURNS: now

now = time_ms(now)
for i = 1, #rest, 2 do
  local lines = {}
  for line in string.gmatch(rest[i + 1], '[^\n]+') do
    lines[#lines + 1] = line
  end
  write_journal(rest[i], lines)
end
return text(now)
