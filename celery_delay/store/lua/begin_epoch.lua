--- Name a Redis history that bears no mark, or another server's.
-- @include clock
-- @allow-oom
-- KEYS: mark lease
-- ARGV: now:int:ms term:int run_id:str known_epoch:int epoch:int
--   epoch  the name that SQL has for it already, where nothing is to be moved in it before it was
--          compared with SQL; 0: the name is drawn here
-- RETURNS: TERM (also: the mark has a higher epoch) | epoch run_id_before ("" for none)

now = time_ms(now)
if tonumber(redis.call('HGET', lease, 'term') or 0) ~= term then
  return { 'TERM' }
end
local before = redis.call('HMGET', mark, 'run_id', 'epoch')
if epoch == 0 then
  redis.call('HDEL', mark, 'unready')
end
if before[1] == run_id and before[2] then
  return { before[2], run_id }
end
local highest = tonumber(before[2] or 0)
if epoch == 0 then
  epoch = math.max(known_epoch + 1, highest + 1, now)
elseif epoch <= highest then
  return { 'TERM' }
else
  redis.call('HSET', mark, 'unready', '1')
end
redis.call('HSET', mark, 'run_id', run_id, 'epoch', text(epoch))
return { text(epoch), before[1] or '' }
