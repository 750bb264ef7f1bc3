-- Giving a waiting entry another place.
-- Expects the locals: entries, and those of journal.lua, places.lua, records.lua, ways.lua and
-- wake.lua.

local function place_anew(id, changed, at, is_held, data)
  -- takes: the record as its next version
  local _, _, run, version, _, _, payload = read_head(changed)
  local place = is_held and held or schedule_of(payload)
  local head = redis.call('ZRANGE', place, 0, 0, 'WITHSCORES')[2]
  take_away(id)
  redis.call('ZADD', place, text(at), id)
  redis.call('HSET', entries, id, changed)
  write_journal(is_held and 'HELD' or 'SCHEDULED',
    { id .. '\t' .. run .. '\t' .. version .. '\t' .. text(at) .. '\t' .. data })
  if not is_held and at < (tonumber(head) or math.huge) then
    wake_leader()
  end
end
