SELECT (SELECT sum(amount) FROM soak.entry) AS entry,
       (SELECT sum(balance) FROM soak.account) AS account,
       (SELECT sum(amount) FROM soak.loose) AS loose,
       (SELECT sum(amount) FROM soak.parted) AS parted,
       (SELECT sum(amount) FROM soak.large) AS large,
       (SELECT sum(amount) FROM soak.wide) AS wide,
       (SELECT sum(amount) FROM (TABLE soak.small_1 UNION ALL TABLE soak.small_2
           UNION ALL TABLE soak.small_3 UNION ALL TABLE soak.small_4) AS small) AS small;
