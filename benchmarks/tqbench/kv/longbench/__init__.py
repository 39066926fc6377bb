"""LongBench and LongBench-E (Bai et al., 2024, arXiv 2308.14508) answered from packed caches."""
