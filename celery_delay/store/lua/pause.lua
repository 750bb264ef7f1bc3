--- Close a gate: what is due and meets it leaves the schedule until it opens.
-- @include clock
-- @allow-oom
-- KEYS: gates
-- ARGV: now:int:ms deadline:int:ms gate:str facts:str most:int:gates
--   deadline  until when this call may be repeated; an attempt that arrives later does nothing
--   gate, facts  see include/gates.lua; the facts (who, why) get the instant of now as "since"
--   most      no more gates than this are kept
-- RETURNS: LATE now | FULL now | PAUSED now facts   those of the first pause if it was closed

now = time_ms(now)
if now > deadline then
  return { 'LATE', text(now) }
end
local known = redis.call('HGET', gates, gate)
if known and string.sub(known, 1, 1) == 'P' then
  return { 'PAUSED', text(now), string.sub(known, 2) }
end
if not known and redis.call('HLEN', gates) >= most then
  return { 'FULL', text(now) }
end
local said = cjson.decode(facts)
said.since = now
facts = cjson.encode(said)
redis.call('HSET', gates, gate, 'P' .. facts)
return { 'PAUSED', text(now), facts }
