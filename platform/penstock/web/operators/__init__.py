"""Pages of the operators: hosts, deployments, tenants and the audit log. What they change goes through the services."""
