-- It owns a table whose policies apply to its owner, and changes are applied with the owner's rights.
CREATE ROLE steep_owner BYPASSRLS;
CREATE ROLE steep_reader;
CREATE ROLE "Odd ""Role""";
