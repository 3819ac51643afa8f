UPDATE child SET added = extra + 1, name = 'later' WHERE id <= 50;
