-- Whether a beat leads, as far as its signs of life tell.
-- Expects the locals: mark, now.

local function age_of_leader()
  -- returns: ms since its last sign of life, or -1; one from the future is none either: the
  -- clock was set back since
  local alive = tonumber(redis.call('HGET', mark, 'alive') or -1)
  return alive < 0 and -1 or math.abs(now - alive)
end
