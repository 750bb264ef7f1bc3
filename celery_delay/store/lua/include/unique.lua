-- The unique key of an entry, by its labels; and what becomes of it when the entry leaves.
-- Expects the locals: now, and those of keys.lua and records.lua.

local function unique_of(payload)
  -- takes: the payload of a record whose digest is right
  -- returns: field, scope and time limit in ms of the key that the entry is to have; or nil
  local labels = labels_of(payload)
  if labels and string.find(labels, '"unique":', 1, true) then
    local said = cjson.decode(labels).unique
    return 'u:' .. said[1], said[2], said[3]
  end
end

local function leave_key(id, run, due, payload, is_handed_off)
  -- for an entry that leaves: its key becomes free, or a lease until the task has come further
  local field, scope, limit = unique_of(payload)
  local holder = field and read_key(field)
  if not holder or holder.id ~= id or holder.run ~= run or holder.ends > 0 then
    return
  end
  if is_handed_off and scope ~= 'dispatched' then
    write_key(field, now + limit, id, run, due)
  else
    free_key(field)
  end
end
