-- Reading records and templates; the formats are described in entries.py.
-- Expects the locals: templates, template_uses.

local CODEC = '1'
-- the byte of "~", with which the line of a payload begins that has the labels
local LABELLED = 126

local function read_head(record)
  -- returns: codec, digest, run, version, deadline, expires, payload; or nil
  local codec, digest, run, version, deadline, expires, rest =
    string.match(record, '^(%S+) (%x+)\n(%d+)\n(%d+)\n(%d+)\n(%d+)\n()')
  if codec then
    return codec, digest, run, version, deadline, expires, string.sub(record, rest)
  end
end

local function template_of(payload)
  return string.match(payload, '^([^\n]*)')
end

local function is_published(payload)
  -- whether a beat publishes the message, because no move reaches its queue
  local template = template_of(payload)
  return string.sub(template, 1, 1) == 'p' or string.match(template, '^=[^\2]*\2%-') ~= nil
end

local function labels_of(payload)
  -- returns: what the caller wrote on the entry, as JSON; or nil
  -- a plain search: a pattern would take its time with a body of a megabyte
  local before = string.find(payload, '\n~', 1, true)
  return before and string.sub(payload, before + 2)
end

local function is_whole(payload, digest)
  return string.sub(redis.sha1hex(payload), 1, 10) == digest
end

local function release_template(payload)
  local id = template_of(payload)
  if string.sub(id, 1, 1) ~= '=' then
    redis.call('HINCRBY', template_uses, id, -1)
  end
end

local function next_version(record)
  -- returns: the record as its next version, and that version, as text; or nil
  local codec, digest, run, version, deadline, expires, payload = read_head(record)
  if codec ~= CODEC or not is_whole(payload, digest) then
    return nil
  end
  version = string.format('%.0f', tonumber(version) + 1)
  local head = { codec .. ' ' .. digest, run, version, deadline, expires, payload }
  return table.concat(head, '\n'), version
end
