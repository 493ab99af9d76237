-- Hashes, meta and log move together.
-- KEYS: penstock:snap:meta, penstock:snap:log, penstock:snap:key-ids
-- ARGV: version expected now ('' for none), new version, digest, published at, '1' when the snapshot is whole,
--       delta (JSON), entries kept in the log, then kind, id, record ('' removes), uuid ('' for all but keys), repeated.
-- Answer: 1, or 0 when another version stands there.
local current = redis.call('HGET', KEYS[1], 'version') or ''
if current ~= ARGV[1] then return 0 end
for i = 8, #ARGV, 4 do
  local key, id, record, uuid = 'penstock:snap:' .. ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
  if record == '' then redis.call('HDEL', key, id) else redis.call('HSET', key, id, record) end
  if uuid ~= '' then
    if record == '' then redis.call('HDEL', KEYS[3], uuid) else redis.call('HSET', KEYS[3], uuid, id) end
  end
end
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[7], ARGV[2] .. '-0', 'version', ARGV[2], 'delta', ARGV[6])
redis.call('HSET', KEYS[1], 'version', ARGV[2], 'digest', ARGV[3], 'published_at', ARGV[4], 'whole', ARGV[5])
return 1
