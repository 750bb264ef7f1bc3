-- Additions of what was cancelled before it came.
-- Expects the functions of tombstones.lua.

local function is_first_refusal(id, run)
  -- whether the refusal is to be journalled; leaves word, so that a repeat of the add is not, and
  -- that a repeat of the cancel can say from now on that it did cancel
  local told = 'r/' .. id .. '/' .. run
  if #buried(told) > 0 then
    return false
  end
  local _, refused_run = cancelled(id)
  bury(told, '')
  bury('c/' .. id, 'F ' .. text(refused_run))
  return true
end
