--- Name a Redis history that bears no mark, or another server's.
-- @include clock
-- @allow-oom
-- KEYS: mark lease
-- ARGV: now:int:ms term:int run_id:str known_epoch:int
-- RETURNS: TERM | epoch run_id_before ("" for none)

now = time_ms(now)
if tonumber(redis.call('HGET', lease, 'term') or 0) ~= term then
  return { 'TERM' }
end
local before = redis.call('HMGET', mark, 'run_id', 'epoch')
if before[1] == run_id and before[2] then
  return { before[2], run_id }
end
local epoch = math.max(known_epoch + 1, tonumber(before[2] or 0) + 1, now)
redis.call('HSET', mark, 'run_id', run_id, 'epoch', text(epoch))
return { text(epoch), before[1] or '' }
