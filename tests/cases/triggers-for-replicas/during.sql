UPDATE shop.orders SET id = id + 10000 WHERE id <= 50;
