-- Which of some messages stand on a queue, by their delivery tags.
-- Expects the functions of databases.lua.

local TOGETHER = 50

local function name_of(tag)
  -- takes: "<task id>.<run>.<epoch>…"; returns: "<task id>/<run>", or nil if it is no such tag
  local id, run = string.match(tag, '^(.+)%.(%d+)%.%d+')
  return id and id .. '/' .. run
end

local function messages_in(database_number, keys, longest, most_bytes)
  -- returns: a table whose keys are the names of what stands there; or nil and why there is none,
  --   "" if there is too much to look at
  local why = select_database(database_number)
  local count, bytes, found = 0, 0, {}
  for _, key in ipairs(keys) do
    local length = why and 0 or redis.pcall('LLEN', key)
    if type(length) == 'table' then
      why, length = length.err, 0
    end
    count = count + length
  end
  if why or count > longest then
    return nil, why or ''
  end
  for _, key in ipairs(keys) do
    for first = 0, longest, TOGETHER do
      local some = redis.call('LRANGE', key, first, first + TOGETHER - 1)
      for _, message in ipairs(some) do
        bytes = bytes + #message
        -- a tag of its own that a task's arguments bear is escaped, or in the body's base64
        for tag in string.gmatch(message, '"delivery_tag":%s*"([^"]*)"') do
          local name = name_of(tag)
          if name then
            found[name] = true
          end
        end
      end
      if bytes > most_bytes then
        return nil, ''
      end
      if #some < TOGETHER then
        break
      end
    end
  end
  return found
end
