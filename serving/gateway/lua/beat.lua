-- One gateway's heartbeat, and everybody else's in the same round trip.
-- KEYS: penstock:epoch, penstock:gws, penstock:grace-until.
-- ARGV: gateway, its beat (JSON), lifetime in ms, a name for a new epoch, silence and grace in ms (grants.lua).
-- Answer: {epoch, beats of the other live gateways}
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local epoch = redis.call('GET', KEYS[1])
if not epoch then
  epoch = ARGV[4] .. '.' .. string.format('%.0f', now)
  redis.call('SET', KEYS[1], epoch)
end
redis.call('SET', 'penstock:gw:' .. ARGV[1], ARGV[2], 'PX', ARGV[3])
-- Whoever is back first ends the silence, and so must say that there was one.
local newest = redis.call('ZREVRANGE', KEYS[2], 0, 0, 'WITHSCORES')[2]
if newest and now - newest > tonumber(ARGV[5]) then
  redis.call('SET', KEYS[3], string.format('%.0f', now + ARGV[6]), 'PX', ARGV[6])
end
redis.call('ZADD', KEYS[2], string.format('%.0f', now), ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', string.format('%.0f', now - 30000))
local names = redis.call('ZRANGEBYSCORE', KEYS[2], string.format('%.0f', now - ARGV[3]), '+inf')
local beats = {}
for _, name in ipairs(names) do
  if name ~= ARGV[1] then
    local beat = redis.call('GET', 'penstock:gw:' .. name)
    if beat then beats[#beats + 1] = beat end
  end
end
return {epoch, beats}
