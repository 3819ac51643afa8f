SELECT count(*), sum(id), bool_and(touched) FROM shop.orders; SELECT count(*), bool_and(touched) FROM shop.customer;
