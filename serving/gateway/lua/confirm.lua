-- The published snapshot is still what the database says. KEYS: penstock:snap:meta. ARGV: version, UNIX seconds.
if redis.call('HGET', KEYS[1], 'version') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'published_at', ARGV[2])
return 1
