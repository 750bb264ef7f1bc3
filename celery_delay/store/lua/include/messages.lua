-- Messages from templates and values; the formats are described in entries.py.
-- Expects the locals: now, templates, and those of clock.lua and records.lua.

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
      local codec, db, queue, task, queue_name, expires, count, rest = string.match(stored,
        '^(%S+)\n(%-?%d+)\n([^\n]+)\n([^\n]*)\n([^\n]*)\n(%d+)\n(%d+)\n(.*)$')
      if codec == CODEC then
        local shape = { database = tonumber(db), queue = queue, task = task,
          queue_name = queue_name, expires = expires, expiring = {} }
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

local letters = {}
for letter in string.gmatch('ABCDEFGHIJKLMNOPQRSTUVWXYZ', '%u') do
  letters[#letters + 1] = letter
end
local seconds
local function text_of(entry, shape, tag, behind_eta)
  -- takes: the end of the delivery tag; one more member of our header, or ''
  -- returns: the text of its envelope; nil if its values do not fit
  seconds = seconds or string.format('%.3f', now / 1000)
  local values = { i = entry.id, r = entry.run, d = text(entry.due) .. behind_eta, n = tag,
    l = 'null', t = seconds, ['$'] = '' }
  local slot = 0
  for value in string.gmatch(entry.payload, '\n([^\n]*)') do
    slot = slot + 1
    if string.byte(value) == LABELLED then
      values.l = string.sub(value, 2)
    else
      values[letters[slot] or slot] = value
    end
  end
  return fill(shape, values)
end
