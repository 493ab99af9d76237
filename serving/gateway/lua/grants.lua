-- One exchange of a gateway with the arbiter of plain limits. serving/policy/bucket.py is the same arithmetic.
-- KEYS: penstock:epoch, penstock:gws, penstock:grace-until, then one key per limit (penstock:grant:<id> or penstock:held:<id>).
-- ARGV[1]: msgpack {g=gateway, e=a name for a new epoch, life=ms, grace=ms, silence=ms, l={limit...}, a={ask...}}
--   limit: {'r', capacity, own lease left, lease kept, {{difference, charged at}...}, lease wanted, last known level,
--           whether the capacity may be an old one, ms in which the capacity drains}
--          {'c', capacity, own requests in flight, free seats kept, free seats wanted}
--   ask:   {{index of limit, amount}...}, all or nothing
-- Answer: msgpack {now ms, epoch, live gateways, ms of grace left, {{level, others' leases, lease given, own}...}, {ask answer...}}
--   own: the gateway's part of the level, seats or lease
--   ask answer: 0 granted, 1 undecided (grace), or {index of limit, wait ms, remaining, others' leases}
local WINDOW, VALLEYS, TOLERANCE = 60000, 40, 1e-9
local request = cmsgpack.unpack(ARGV[1])
local me = request.g
local time = redis.call('TIME')
local now = time[1] * 1000 + time[2] / 1000

local function text(number) return string.format('%.17g', number) end

local epoch = redis.call('GET', KEYS[1])
if not epoch then
  epoch = request.e .. '.' .. string.format('%.0f', math.floor(now))
  redis.call('SET', KEYS[1], epoch)
end
local made = tonumber(string.match(epoch, '%.(%d+)$') or '0')
local grace = 0
if now >= made then grace = math.max(0, made + request.grace - now) end
-- Gateways write here every 100 ms: after a silence the state was away, and what they did meanwhile is yet to be told.
local newest = redis.call('ZREVRANGE', KEYS[2], 0, 0, 'WITHSCORES')[2]
if newest and now - newest > request.silence then
  redis.call('SET', KEYS[3], text(now + request.grace), 'PX', request.grace)
end
local told_by = redis.call('GET', KEYS[3])
if told_by and told_by - now <= request.grace then grace = math.max(grace, told_by - now) end
local in_grace = grace > 0
redis.call('ZADD', KEYS[2], text(now), me)
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', text(now - 30000))
local gateways = redis.call('ZRANGEBYSCORE', KEYS[2], text(now - request.life), '+inf')
local is_live = {}
for _, name in ipairs(gateways) do is_live[name] = true end

local function charge(b, amount)
  local depth = b.level + b.refunded
  while #b.valleys > 0 and b.valleys[#b.valleys][2] >= depth do table.remove(b.valleys) end
  table.insert(b.valleys, {now, depth})
  if #b.valleys > VALLEYS then
    local closest, gap
    for i = 1, #b.valleys - 1 do
      local between = b.valleys[i + 1][2] - b.valleys[i][2]
      if not gap or between < gap then closest, gap = i, between end
    end
    b.valleys[closest][1] = b.valleys[closest + 1][1]
    table.remove(b.valleys, closest + 1)
  end
  b.level = b.level + amount
end

local function refund(b, amount, charged_at)
  local least = b.level + b.refunded
  for _, valley in ipairs(b.valleys) do
    if valley[1] > charged_at then
      least = math.min(least, valley[2])
      break
    end
  end
  local given = math.min(amount, math.max(0, least - b.refunded), b.level)
  b.level = b.level - given
  b.refunded = b.refunded + given
end

-- The bucket keeps the capacity that requests last came with: whoever only settles may know a value long changed, and
-- must not drain the bucket by it.
local function load_rate(key, capacity, is_old, window)
  local b = {key = key, level = 0, refunded = 0, valleys = {}, leases = {}, others = 0, own = 0, given = 0}
  local fields, at = redis.call('HGETALL', key), now
  for i = 1, #fields, 2 do
    local name, value = fields[i], fields[i + 1]
    if name == 'level' then b.level = tonumber(value)
    elseif name == 'at' then at = tonumber(value)
    elseif name == 'refunded' then b.refunded = tonumber(value)
    elseif name == 'valleys' then b.valleys = cmsgpack.unpack(value)
    elseif name == 'capacity' then b.kept = tonumber(value)
    elseif name == 'window' then b.window, b.has_window = tonumber(value), true
    else b.leases[string.sub(name, 7)] = tonumber(value) end
  end
  local until_now = b.kept or capacity
  local window_until_now = b.kept and (b.window or WINDOW) or window
  b.level = math.max(0, b.level - until_now / window_until_now * math.max(0, now - at))
  if not is_old then b.kept, b.window = capacity, window end
  b.capacity = is_old and until_now or capacity
  b.rate = b.capacity / (is_old and window_until_now or window)
  return b
end

local function report_rate(b, left, kept, settlements, known)
  -- A dead gateway's lease counts as used: nobody can say that it was not.
  for name, amount in pairs(b.leases) do
    if name == me then
      if amount > left then charge(b, amount - left) end
    elseif is_live[name] then b.others = b.others + amount
    else
      charge(b, amount)
      redis.call('HDEL', b.key, 'lease:' .. name)
    end
  end
  b.own = kept
  -- Before the settlements: what is known does not have them yet. It has all leases, this gateway's as it was.
  local standing = b.level + left + b.others
  if in_grace and known > standing then charge(b, known - standing) end
  for _, settlement in ipairs(settlements) do
    if settlement[1] > 0 then charge(b, settlement[1]) else refund(b, -settlement[1], settlement[2]) end
  end
end

local function save_rate(b)
  local lease = 'lease:' .. me
  if b.own > 0 then redis.call('HSET', b.key, lease, text(b.own)) else redis.call('HDEL', b.key, lease) end
  if b.level <= 0 and b.own <= 0 and b.others <= 0 then
    redis.call('DEL', b.key)
    return
  end
  redis.call('HSET', b.key, 'level', text(b.level), 'at', text(now), 'refunded', text(b.refunded),
             'valleys', cmsgpack.pack(b.valleys))
  if b.kept then
    redis.call('HSET', b.key, 'capacity', text(b.kept))
    if b.window and b.window ~= WINDOW then redis.call('HSET', b.key, 'window', text(b.window))
    elseif b.has_window then redis.call('HDEL', b.key, 'window') end
  end
  local empty_in = b.rate > 0 and b.level / b.rate or 0
  redis.call('PEXPIRE', b.key, string.format('%.0f', math.min(empty_in, 86400000) + 10000))
end

-- Seats: field <gateway> holds its requests in flight, free:<gateway> the free seats leased to it. Those of a dead
-- gateway are removed: they are free.
local function load_held(key, capacity, own, kept)
  local b = {key = key, capacity = capacity, held = own, own = kept, taken = 0, others = 0, given = 0}
  local fields = redis.call('HGETALL', key)
  for i = 1, #fields, 2 do
    local field, count = fields[i], tonumber(fields[i + 1])
    local leaser = string.match(field, '^free:(.*)$')
    local name = leaser or field
    if not is_live[name] then redis.call('HDEL', key, field)
    elseif name ~= me then
      if leaser then b.others = b.others + count else b.taken = b.taken + count end
    end
  end
  return b
end

local function committed_seats(b) return b.held + b.own + b.taken + b.others end

local function save_held(b)
  if b.held > 0 then redis.call('HSET', b.key, me, b.held) else redis.call('HDEL', b.key, me) end
  if b.own > 0 then redis.call('HSET', b.key, 'free:' .. me, b.own) else redis.call('HDEL', b.key, 'free:' .. me) end
  redis.call('PEXPIRE', b.key, 10000)
end

local limits = {}
for i, limit in ipairs(request.l) do
  if limit[1] == 'r' then
    limits[i] = load_rate(KEYS[i + 3], limit[2], limit[8], limit[9] or WINDOW)
    report_rate(limits[i], limit[3], limit[4], limit[5], limit[7])
  else limits[i] = load_held(KEYS[i + 3], limit[2], limit[3], limit[4]) end
end

local function obstacle(ask)
  for _, demand in ipairs(ask) do
    local b, amount = limits[demand[1]], demand[2]
    if b.held then
      local taken = committed_seats(b)
      if taken + amount > b.capacity then return {demand[1], 1000, math.max(0, b.capacity - taken), b.others} end
    else
      local committed, slack, capacity = b.level + b.own + b.others, TOLERANCE * b.capacity, b.capacity
      local fits
      if capacity <= 0 then fits = false
      elseif amount > capacity + slack then fits = committed <= slack
      else fits = committed + amount <= capacity + slack end
      if not fits then
        local wait = b.window or WINDOW
        if capacity > 0 then
          local excess = amount > capacity and committed or committed + amount - capacity
          wait = math.max(0, excess) / b.rate
        end
        return {demand[1], wait, math.max(0, capacity - committed), b.others}
      end
    end
  end
  return nil
end

local answers = {}
for i, ask in ipairs(request.a) do
  local refused = in_grace and 1 or obstacle(ask)
  if not refused then
    for _, demand in ipairs(ask) do
      local b = limits[demand[1]]
      if b.held then b.held = b.held + demand[2] else charge(b, demand[2]) end
    end
  end
  answers[i] = refused or 0
end

local reports = {}
for i, limit in ipairs(request.l) do
  local b = limits[i]
  if b.held then
    if limit[5] > 0 and not in_grace then
      local room = b.capacity * 0.875 - committed_seats(b)
      b.given = math.max(0, math.floor(math.min(limit[5], room / #gateways)))
      b.own = b.own + b.given
    end
    save_held(b)
    reports[i] = {committed_seats(b), b.others, b.given, b.held + b.own}
  else
    if limit[6] > 0 and not in_grace then
      -- The last eighth is never leased: near the limit every decision is made here.
      local room = b.capacity * 0.875 - b.level - b.own - b.others
      b.given = math.max(0, math.min(limit[6], room / #gateways))
      b.own = b.own + b.given
    end
    save_rate(b)
    reports[i] = {b.level + b.own + b.others, b.others, b.given, b.own}
  end
end
return cmsgpack.pack({now, epoch, gateways, grace, reports, answers})
