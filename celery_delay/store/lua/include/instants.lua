-- When an entry is due, out of what its caller says.
-- Expects the local: now.

local function due_at(due)
  -- due: "@" and an instant, or "+" and a delay, in ms.  A delay starts at the end of the
  -- current millisecond: never early.
  local ms = tonumber(string.sub(due, 2))
  if string.sub(due, 1, 1) == '+' then
    return ms == 0 and now or now + 1 + ms
  end
  return ms
end
