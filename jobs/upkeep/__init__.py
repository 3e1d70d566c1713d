"""Looking after stores and catalogs, and what tintray stands on."""
