CREATE ROLE steep_owner;
CREATE ROLE steep_reader;
CREATE ROLE "Odd ""Role""";
