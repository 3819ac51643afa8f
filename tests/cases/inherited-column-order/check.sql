SELECT id, name, extra, added FROM child ORDER BY id;
