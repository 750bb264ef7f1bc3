-- The end of an entry that was published.
-- Expects the locals: attempts, now, and those of claims.lua, records.lua and unique.lua.

local function handed_off(id, eta, record)
  -- ends the claim of an entry whose message the broker has; returns: its journal line
  end_claim(id)
  redis.call('HDEL', attempts, id)
  local _, digest, run, version, _, _, payload = read_head(record)
  if payload and is_whole(payload, digest) then
    release_template(payload)
    leave_key(id, run, eta, payload, true)
  end
  return id .. '\t' .. (run or '0') .. '\t' .. (version or '0') .. '\t' .. eta .. '\t{"lag_ms":'
    .. text(math.max(0, now - tonumber(eta))) .. '}'
end
