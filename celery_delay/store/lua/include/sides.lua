-- The sides: where entries wait whose gate is closed; see gates.lua.
--   gated:        task id -> eta in ms, of all of them
--   gate_of:      task id -> gate
--   gated:<gate>: task id -> eta in ms, of those at that gate; made and gone with them
-- Expects the locals: gated, gate_of.

local function side_of(gate)
  return gated .. ':' .. gate
end

local function leave_gate(id)
  -- for an entry that waits at a gate no more
  local gate = redis.call('HGET', gate_of, id)
  redis.call('ZREM', gated, id)
  if gate then
    redis.call('ZREM', side_of(gate), id)
    redis.call('HDEL', gate_of, id)
  end
end
