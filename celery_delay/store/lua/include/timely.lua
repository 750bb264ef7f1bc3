-- Whether a call that may be repeated still counts: in its epoch, and until its deadline.
-- Expects the locals: now, mark, epoch (0: any), deadline.

local function why_untimely()
  -- returns: why nothing is done, EPOCH or LATE; or nil
  if epoch > 0 and tonumber(redis.call('HGET', mark, 'epoch') or 0) ~= epoch then
    return 'EPOCH'
  end
  if now > deadline then
    return 'LATE'
  end
end
