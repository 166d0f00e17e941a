"""From video files and annotations to batches: readers, schemas, the synthetic world, Grain pipelines."""
