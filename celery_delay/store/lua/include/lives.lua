-- Signs of the workers' life.
--   workers: worker -> the last one, instant in ms
-- Expects the locals: now, workers.

local function is_alive(worker, silent_ms)
  -- whether the worker has given a sign of life lately
  local seen = redis.call('ZSCORE', workers, worker)
  return seen ~= false and now - tonumber(seen) <= silent_ms
end
