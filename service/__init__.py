"""The scoring service. Nothing is imported here, so that `service.contract` stays light."""
