"""What the service accepts: schema, manifest, pack, item table, errors. Torch-free and server-free."""
