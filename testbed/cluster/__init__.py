"""What a container of docker-compose.yml does: node, shaper, check, collector."""
