-- What of a task may have left: the run that is under a claim, or is live after a claim that
-- ended in silence, or is parked.
-- Expects the locals: attempts, and those of claims.lua and quarantine.lua.

local function read_out(id, eta, record)
  -- takes: eta and record of the live entry, if there is one; returns: eta, record; or nil
  local _, _, eta_claimed, record_claimed = read_claim(id)
  if record_claimed then
    return eta_claimed, record_claimed
  end
  if not eta then
    return read_parked(id)
  end
  if redis.call('HEXISTS', attempts, id) == 1 then
    return eta, record
  end
end
