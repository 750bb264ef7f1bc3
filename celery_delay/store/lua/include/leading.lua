-- Whether the caller leads: in this history of Redis, and in the present term.
-- Expects the locals: mark, lease, epoch, term.

local function why_not_leading()
  -- returns: why nothing is done, EPOCH or TERM; or nil
  if tonumber(redis.call('HGET', mark, 'epoch') or 0) ~= epoch then
    return 'EPOCH'
  end
  if tonumber(redis.call('HGET', lease, 'term') or 0) ~= term then
    return 'TERM'
  end
end
