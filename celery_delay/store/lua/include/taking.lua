-- Taking a waiting entry out for good, or one that its caller takes out of quarantine.
-- Expects the locals: entries, templates, and those of journal.lua, unique.lua,
-- places.lua, records.lua and tombstones.lua.

local function take_out(id, record, due, data, refused)
  -- takes: due as text, "" if not known; refused: the highest run whose add is to be refused
  -- returns: its run, version, and its template's text, each nil if not known; refused
  local _, digest, run, version, _, _, payload = read_head(record)
  local stored
  take_away(id)
  redis.call('HDEL', entries, id)
  if payload then
    stored = redis.call('HGET', templates, template_of(payload)) or nil
    refused = math.max(refused, tonumber(run))
    if is_whole(payload, digest) then
      release_template(payload)
      leave_key(id, run, due, payload, false)
    end
    -- the entry is in the journal: a repeat of its add is refused without a word
    bury('r/' .. id .. '/' .. run, '')
  end
  write_journal('CANCELLED', { id .. '\t' .. (run or '0') .. '\t' .. (version or '0') .. '\t' .. due
    .. '\t' .. data })
  return run, version, stored, refused
end
