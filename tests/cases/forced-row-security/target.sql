CREATE ROLE tenant_owner;
