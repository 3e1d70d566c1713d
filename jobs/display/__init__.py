"""What people see: tables, live progress, plots."""
