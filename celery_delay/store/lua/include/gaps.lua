-- The instants that a schedule has passed over, so that they can be told from those it fired.
-- Expects the function: text.

local MOST_GAPS = 100

local function with_gap(gaps, from, to)
  -- gaps: "from-to,…" ascending, without to; or nil.  Returns: the same with one more, the last.
  -- Of more than MOST_GAPS the oldest is forgotten: it counts as fired.
  local spans = {}
  for span in string.gmatch(gaps or '', '[^,]+') do
    spans[#spans + 1] = span
  end
  local begun, ended = string.match(spans[#spans] or '', '^(%d+)-(%d+)$')
  if ended == from then
    spans[#spans] = begun .. '-' .. to
  else
    spans[#spans + 1] = from .. '-' .. to
  end
  if #spans > MOST_GAPS then
    table.remove(spans, 1)
  end
  return table.concat(spans, ',')
end

local function without(gaps, from, to)
  -- Returns: gaps, from which the instants from … to are taken out; whether from lay in one of them
  local spans, found = {}, false
  for span in string.gmatch(gaps or '', '[^,]+') do
    local begun, ended = string.match(span, '^(%d+)-(%d+)$')
    begun, ended = tonumber(begun), tonumber(ended)
    if begun <= from and from < ended then
      found = true
      if begun < from then
        spans[#spans + 1] = text(begun) .. '-' .. text(from)
      end
      if to < ended then
        spans[#spans + 1] = text(to) .. '-' .. text(ended)
      end
    else
      spans[#spans + 1] = span
    end
  end
  while #spans > MOST_GAPS do
    table.remove(spans, 1)
  end
  return table.concat(spans, ','), found
end
