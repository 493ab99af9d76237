-- KEYS: penstock:epoch, penstock:run, penstock:grace-until. ARGV: a random name for the contents, ms of a grace.
-- The epoch is '<name>.<ms of the state's clock when it was made>'; made anew when the state has restarted empty.
local epoch = redis.call('GET', KEYS[1])
if not epoch then
  local t = redis.call('TIME')
  epoch = ARGV[1] .. '.' .. string.format('%.0f', t[1] * 1000 + math.floor(t[2] / 1000))
  redis.call('SET', KEYS[1], epoch)
end
-- Each start of the server has a run_id of its own. One that came back with its data may have lost the last second of
-- it, and gateways went on alone however short it was away: a grace, as grants.lua begins it after a silence.
local run = string.match(redis.call('INFO', 'server'), 'run_id:(%w+)')
local before = redis.call('GET', KEYS[2])
if run and run ~= before then
  redis.call('SET', KEYS[2], run)
  if before then
    local t = redis.call('TIME')
    local until_ms = t[1] * 1000 + math.floor(t[2] / 1000) + ARGV[2]
    redis.call('SET', KEYS[3], string.format('%.0f', until_ms), 'PX', ARGV[2])
  end
end
return epoch
