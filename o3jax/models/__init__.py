"""Qwen3-VL in Flax. The model reads top to bottom: config, batch, vision, text, evidence, then qwen3_vl, the
assembly.

Shape letters, used everywhere:

    B batch            S sequence          T frame pairs (or images; of a cache, its slots)
    P patches          N query heads       K key/value heads     H head dim
    D model width      F mlp width         V vocabulary          L layers
    E experts          G group samples     M evidence mentions   C values of one patch
    Q questions        R rows of the evidence modules: B x Q
"""
