-- Messages from templates and values; the formats are described in entries.py.
-- Expects the locals: templates, and those of records.lua.

local known, damaged = {}, {}
local function template(id)
  if known[id] == nil then
    local stored
    if string.sub(id, 1, 1) == '=' then
      stored = string.gsub(string.sub(id, 2), '\2', '\n')
    else
      stored = redis.call('HGET', templates, id)
      if stored and string.sub(redis.sha1hex(stored), 1, 16) ~= string.gsub(id, '^p', '') then
        stored = false
        damaged[#damaged + 1] = id
      end
    end
    known[id] = false
    if stored then
      local codec, db, queue, expires, count, rest =
        string.match(stored, '^(%S+)\n(%-?%d+)\n([^\n]+)\n(%d+)\n(%d+)\n(.*)$')
      if codec == CODEC then
        local shape = { database = tonumber(db), queue = queue, expires = expires, expiring = {} }
        for _ = 1, tonumber(count) do
          local key, tail = string.match(rest, '^([^\n]*)\n(.*)$')
          shape.expiring[#shape.expiring + 1] = key
          rest = tail
        end
        -- cut once: to fill in a slot of a list is much cheaper than to search the text for it
        shape.pieces, shape.slots = {}, {}
        for literal, slot in string.gmatch(rest .. '\1$', '([^\1]*)\1(.)') do
          shape.pieces[#shape.pieces + 1] = literal
          shape.pieces[#shape.pieces + 1] = ''
          shape.slots[#shape.slots + 1] = slot
        end
        known[id] = shape
      end
    end
  end
  return known[id]
end

local function fill(shape, values)
  -- returns: the message; or nil if the values do not fit
  for i, slot in ipairs(shape.slots) do
    local value = values[slot]
    if not value then
      return nil
    end
    shape.pieces[2 * i] = value
  end
  return table.concat(shape.pieces)
end
