--- Free the unique key of a task that has come as far as it holds it.
-- @include clock keys
-- @allow-oom
-- KEYS: uniques unique_ends
-- ARGV: unique_key:str task_id:str run:int
--   run  the lease of an earlier run ends too: it has gone on under a retry past the store
-- RETURNS: 1 it is free now | 0 it was not (or no longer) this task's

local holder = read_key('u:' .. unique_key)
if not holder or holder.id ~= task_id or tonumber(holder.run) > run then
  return 0
end
free_key('u:' .. unique_key)
return 1
