-- Quarantine: entries that cannot be handed off, parked until an operator sends them again
-- or cancels them; until then no other run of the task is taken, but for one from inside it.
-- A parked record keeps its template, so that it can be repaired.
--   quarantine: task id -> JSON [why, eta in ms, record, claims that ended in silence]
-- Expects the locals: quarantine, attempts, and those of records.lua.

local function read_parked(id)
  -- returns: eta, record, silent attempts, why; or nil
  local parked = redis.call('HGET', quarantine, id)
  if parked then
    local why, eta, record, silent = unpack(cjson.decode(parked))
    return eta, record, tonumber(silent or 0), why
  end
end

local function put_in_quarantine(id, why, eta, record)
  local silent = redis.call('HGET', attempts, id) or '0'
  redis.call('HSET', quarantine, id, cjson.encode({ why, eta, record, silent }))
  redis.call('HDEL', attempts, id)
end
