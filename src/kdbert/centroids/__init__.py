"""What `kdbert train-memory` makes: centroids of a teacher's features."""
