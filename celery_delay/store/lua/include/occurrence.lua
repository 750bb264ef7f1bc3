-- Adding the entry of an occurrence.
-- Expects the locals: schedule, outbound, entries, claimed, templates, template_uses, and those of
-- instants.lua, journal.lua, records.lua, ways.lua and wake.lua.

local function is_live(id)
  return redis.call('HEXISTS', entries, id) == 1 or redis.call('HEXISTS', claimed, id) == 1
end

local function add_occurrence(id, due, record, story, template, body)
  local _, _, run, version, _, _, payload = read_head(record)
  local way = schedule_of(payload)
  local at = due_at(due)
  local head = redis.call('ZRANGE', way, 0, 0, 'WITHSCORES')
  redis.call('HSETNX', templates, template, body)
  redis.call('HINCRBY', template_uses, template, 1)
  redis.call('ZADD', way, text(at), id)
  redis.call('HSET', entries, id, record)
  write_journal('SCHEDULED', { id .. '\t' .. run .. '\t' .. version .. '\t' .. text(at) .. '\t' .. story })
  if at < (tonumber(head[2]) or math.huge) then
    wake_leader()
  end
end
