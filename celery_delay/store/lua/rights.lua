--- Try commands on keys that nobody else uses, and tell which an ACL does not allow.
-- @allow-oom
-- KEYS: entries schedule journal wake imports
-- ARGV: rest:*
--   rest = a JSON list for each command and its arguments; the keys in it are those above
-- RETURNS: the name and the refusal of each command that is not allowed, one after the other

local function is_denied(words)
  -- as Redis 6.2 and 7.0 say it, and as later ones do
  for _, sign in ipairs({ "can't run this command", "can't access", 'ACL failure', 'NOPERM' }) do
    if string.find(words, sign, 1, true) then return true end
  end
  return false
end

local refused = {}
for i = 1, #rest do
  local command = cjson.decode(rest[i])
  local answer = redis.pcall(unpack(command))
  if type(answer) == 'table' and answer.err and is_denied(answer.err) then
    refused[#refused + 1] = command[1]
    refused[#refused + 1] = answer.err
  end
end
for _, key in ipairs({ entries, schedule, journal, wake, imports }) do
  -- one of them may be refused
  redis.pcall('UNLINK', key)
  redis.pcall('DEL', key)
end
return refused
