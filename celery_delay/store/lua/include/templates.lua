-- Templates: stored once per shape, counted, and collected when they are in the way.
-- Expects the locals: templates, template_uses, template_cap.

local function have_room(count, wanted)
  -- whether the cap leaves room for so many new templates; unused ones go only if it does not
  --   wanted  has the ids, as keys, of those that stay although no record needs them yet
  if redis.call('HLEN', templates) + count <= template_cap then
    return true
  end
  local uses = redis.call('HGETALL', template_uses)
  for i = 1, #uses, 2 do
    if tonumber(uses[i + 1]) <= 0 and not wanted[uses[i]] then
      redis.call('HDEL', templates, uses[i])
      redis.call('HDEL', template_uses, uses[i])
    end
  end
  return redis.call('HLEN', templates) + count <= template_cap
end
