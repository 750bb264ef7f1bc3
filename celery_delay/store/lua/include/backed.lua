-- Entries that SQL backs: what has left keeps every version out, what was absent at a change
-- keeps lower ones out.
-- Expects the locals: now, mark, epoch (0: the call is not about such entries), and those of
-- tombstones.lua.
--   s/<task id>/<run>   superseded: = version; lower ones must not come any more

local function is_elsewhere()
  -- whether SQL decided on the call in another Redis history than this
  return epoch > 0 and tonumber(redis.call('HGET', mark, 'epoch') or 0) ~= epoch
end

local function is_superseded(id, run, version)
  for _, known in ipairs(epoch > 0 and buried('s/' .. id .. '/' .. run) or {}) do
    if tonumber(known) > version then
      return true
    end
  end
  return false
end

local function has_left(id, run, version)
  -- whether an entry has left so lately that an add of it may still be under way
  return gone(id, run) >= (epoch > 0 and 0 or version)
end
