-- A look at what is due: who goes, and who finds a gate closed.
-- Expects those of due.lua and gates.lua.

local MOST_LOOKS, MOST_ROUNDS = 1000, 8

local function each_due(from, before, limit, take)
  -- calls take(entry, its shape) for up to limit entries that can go and whose gates are open;
  -- returns: the ids of all that it met.  Who is kept back costs little: so it looks at more.
  local ids, met, rounds = {}, {}, 0
  local function meet(entry)
    ids[#ids + 1] = entry.id
    met[entry.id] = true
    local shape = shape_of_fit(entry)
    if shape and not is_kept_back(entry, shape) then
      take(entry, shape)
    end
  end
  look_at_gates()
  local wanted, due
  repeat
    wanted = limit - (#ids - kept)
    due = due_entries(from, before, wanted, #ids)
    for _, entry in ipairs(due) do
      meet(entry)
    end
    rounds = rounds + 1
  until #due < wanted or #ids - kept >= limit or #ids >= MOST_LOOKS or rounds >= MOST_ROUNDS
  if #due == wanted and kept * 2 > #ids then
    -- many more may have to be set aside: who has become due just now shall not wait so long
    local last = due_entries(from, before, math.max(1, limit - (#ids - kept)), -1)
    for i = #last, 1, -1 do
      if not met[last[i].id] then
        meet(last[i])
      end
    end
  end
  return ids
end
