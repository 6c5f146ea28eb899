"""The experiments: files for --config, each with a `get_config`. The folder `experiments` leads here too."""
