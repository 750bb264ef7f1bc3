--- Forget journal entries that SQL has committed.
-- @include leading
-- @allow-oom
-- KEYS: mark lease journal
-- ARGV: epoch:int term:int last_id:str
--   last_id: the last entry that SQL committed
-- RETURNS: EPOCH | TERM | number of entries forgotten

local refused = why_not_leading()
if refused then
  return refused
end
-- what an SQL database must have that comes back from a backup, or from a standby
redis.call('HSET', mark, 'trimmed', string.format('%.0f', epoch) .. ':' .. last_id)
return redis.call('XTRIM', journal, 'MINID', last_id) + redis.call('XDEL', journal, last_id)
