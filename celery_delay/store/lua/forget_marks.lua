--- Forget marks whose worker is gone, and whose run nobody asks for any more.
-- @include clock leading marks lives
-- @allow-oom
-- KEYS: mark lease marks mark_looks done_even done_odd workers
-- ARGV: now:int:ms epoch:int term:int keep_ms:int:ms silent_ms:int:ms limit:int:marks
--   silent_ms  a worker without a sign of life for so long is dead
-- RETURNS: EPOCH | TERM | number of marks forgotten

local refused = why_not_leading()
if refused then
  return refused
end
now = time_ms(now)
local forgotten = 0
for _, member in ipairs(redis.call('ZRANGE', mark_looks, '-inf', text(now), 'BYSCORE', 'LIMIT', 0, limit)) do
  local stage, token, worker = read_mark(member)
  if stage and is_alive(worker, silent_ms) then
    write_mark(member, stage, token, worker)
  else
    forgotten = forgotten + 1
    remove_mark(member)
  end
end
return forgotten
