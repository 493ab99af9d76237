-- What the books have of budgets' periods, for those that know of an earlier minute, or of another sum.
-- KEYS: one key per period (penstock:budget:<id>). ARGV: for each the sum, the minute up to which it counts, and the ms
-- for which it is kept.
for i, key in ipairs(KEYS) do
  local base, first = tonumber(ARGV[3 * i - 2]), tonumber(ARGV[3 * i - 1])
  local stored = redis.call('HGET', key, 'books')
  if not stored or cmsgpack.unpack(stored)[2] <= first then
    redis.call('HSET', key, 'books', cmsgpack.pack({base, first}))
    redis.call('PEXPIRE', key, ARGV[3 * i])
  end
end
return #KEYS
