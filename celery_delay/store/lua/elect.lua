--- One step of the election: renew, take over, or look; always tells where things stand.
-- @include clock
-- @allow-oom
-- KEYS: mark lease schedule outbound claims
-- ARGV: now:int:ms holder:str seen_term:int seen_seq:int may_take:int:flag
--   may_take: the caller has seen (seen_term, seen_seq) unchanged for a whole lease
-- RETURNS: holder term seq now, then for what is moved and for what is published:
--   head_due_ms progress_ms   head_due_ms is -1 when nothing waits; the end of a claim counts
--   as due

now = time_ms(now)
local lease_now = redis.call('HMGET', lease, 'holder', 'term', 'seq')
local owner = lease_now[1] or ''
local term = tonumber(lease_now[2] or 0)
local seq = tonumber(lease_now[3] or 0)
if owner == holder then
  seq = seq + 1
  redis.call('HSET', lease, 'seq', text(seq))
elseif owner == '' or (may_take == 1 and term == seen_term and seq == seen_seq) then
  -- also after the record was lost with all data, no caller sees a term again that it knows
  owner, term, seq = holder, math.max(term, seen_term) + 1, seq + 1
  redis.call('HSET', lease, 'holder', holder, 'term', text(term), 'seq', text(seq),
    'since', text(now))
end
if owner == holder then
  -- whoever stores an entry can see in the same step that somebody will hand it off
  redis.call('HSET', mark, 'alive', text(now))
end
local head = redis.call('ZRANGE', schedule, 0, 0, 'WITHSCORES')
local head_out = redis.call('ZRANGE', outbound, 0, 0, 'WITHSCORES')[2]
local claim_end = redis.call('ZRANGE', claims, 0, 0, 'WITHSCORES')[2]
if claim_end and tonumber(claim_end) < (tonumber(head_out) or math.huge) then
  head_out = claim_end
end
local progress = redis.call('HMGET', mark, 'progress', 'published')
return { owner, text(term), text(seq), text(now), head[2] or '-1', progress[1] or '0',
  head_out or '-1', progress[2] or '0' }
