-- Entries that are on their way out, for which any change comes too late.
-- Expects the locals: claimed, attempts.

local function is_going(id, record)
  -- takes: the live record, or false; returns: whether a beat is publishing the entry, or one
  -- did and nobody knows how far it came
  return redis.call('HEXISTS', claimed, id) == 1
    or (record and redis.call('HEXISTS', attempts, id) == 1)
end
