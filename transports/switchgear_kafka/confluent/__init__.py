"""The engine on confluent-kafka: `kafka://…?client=confluent`."""
