--- Claim an entry's run for a worker that is about to begin it.
-- @include clock journal marks lives
-- @allow-oom
-- KEYS: mark journal marks mark_looks done_even done_odd workers
-- ARGV: now:int:ms journal_max:int:events keep_ms:int:ms silent_ms:int:ms task_id:str run:int token:str worker:str comes_again:int:flag
--   keep_ms      for how long a run that is over is known
--   silent_ms    a worker without a sign of life for so long is dead
--   token        names this delivery; a repeat of the call gets the same answer
--   comes_again  1 if the broker delivers this message again should its worker die, or has
--                delivered it before: then it may be all that is left of the task
-- RETURNS: RUN nobody has it | TAKEN from a worker that is dead | WAIT another has it, and lives
--   | DROP it is over, or another has it and this message is one too many

now = time_ms(now)
local member = task_id .. '/' .. text(run)

local function drop(why)
  write_journal('DROPPED', { task_id .. '\t' .. text(run) .. '\t1\t\t'
    .. cjson.encode({ worker = worker, reason = why }) })
  return 'DROP'
end

if is_over(member) then
  return drop('it has run')
end
redis.call('ZADD', workers, text(now), worker)
local stage, holder, whose = read_mark(member)
if not stage or holder == token then
  if not stage then
    write_mark(member, 'C', token, worker)
  end
  return 'RUN'
end
local only_copy = stage == 'C' or comes_again == 1
if whose == worker or is_alive(whose, silent_ms) then
  return only_copy and 'WAIT' or drop('it runs on ' .. whose)
end
if not only_copy then
  return drop('it began on ' .. whose .. ', which is gone')
end
write_mark(member, 'C', token, worker)
return 'TAKEN'
