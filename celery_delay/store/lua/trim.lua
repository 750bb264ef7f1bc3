--- Forget journal entries that SQL has committed.
-- @allow-oom
-- KEYS: mark lease journal
-- ARGV: epoch:int term:int last_id:str
--   last_id: the last entry that SQL committed
-- RETURNS: EPOCH | TERM | number of entries forgotten

if tonumber(redis.call('HGET', mark, 'epoch') or 0) ~= epoch then
  return 'EPOCH'
end
if tonumber(redis.call('HGET', lease, 'term') or 0) ~= term then
  return 'TERM'
end
return redis.call('XTRIM', journal, 'MINID', last_id) + redis.call('XDEL', journal, last_id)
