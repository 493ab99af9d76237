-- One heartbeat of a gateway: its own figures in, the other live gateways' out.
-- KEYS: penstock:gws, penstock:gw:<own name>. ARGV: own name, beat JSON, life in ms.
-- Answer: the other gateways' beats as JSON. Scores are on this server's clock.
local time = redis.call('TIME')
local now = time[1] * 1000 + time[2] / 1000
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
redis.call('ZADD', KEYS[1], string.format('%.17g', now), ARGV[1])
local names = redis.call('ZRANGEBYSCORE', KEYS[1], string.format('%.17g', now - ARGV[3]), '+inf')
local others = {}
for _, name in ipairs(names) do
  if name ~= ARGV[1] then
    local beat = redis.call('GET', 'penstock:gw:' .. name)
    if beat then others[#others + 1] = beat end
  end
end
return others
