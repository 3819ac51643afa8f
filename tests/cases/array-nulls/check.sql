SELECT count(*), count(*) FILTER (WHERE a[2] IS NULL), count(*) FILTER (WHERE b[1] IS NULL), count(*) FILTER (WHERE a[2] = 'NULL') FROM listed;
