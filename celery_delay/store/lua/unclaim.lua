--- Give a run back that was claimed, for its message goes back to its queue.
-- @include clock marks
-- @allow-oom
-- KEYS: marks mark_looks done_even done_odd
-- ARGV: now:int:ms keep_ms:int:ms task_id:str run:int token:str
-- RETURNS: 1 it is free | 0 it was not (or no longer) this delivery's

now = time_ms(now)
local member = task_id .. '/' .. text(run)
local _, holder = read_mark(member)
if holder ~= token then
  return 0
end
return remove_mark(member)
