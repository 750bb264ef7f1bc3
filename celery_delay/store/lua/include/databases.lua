-- Keys in other DBs of the same server: the queues', which may live in one of their own.
-- Expects the local: database, the number of the store's own.

local selected = database
local function select_database(number)
  -- returns: an error's text; or nothing
  if number ~= selected then
    local err = redis.pcall('SELECT', number).err
    if err then
      return err
    end
    selected = number
  end
end
