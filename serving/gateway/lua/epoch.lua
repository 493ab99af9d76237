-- KEYS[1] penstock:epoch. ARGV[1] a random name for the contents.
-- The epoch is '<name>.<ms of the state's clock when it was made>'; made anew when the state has restarted empty.
local epoch = redis.call('GET', KEYS[1])
if not epoch then
  local t = redis.call('TIME')
  epoch = ARGV[1] .. '.' .. string.format('%.0f', t[1] * 1000 + math.floor(t[2] / 1000))
  redis.call('SET', KEYS[1], epoch)
end
return epoch
