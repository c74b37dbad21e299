"""Offsets, added up by hand."""

import numpy as np

from service.engines._layout import Layout


def test_arrays_start_at_multiples_of_256_bytes():
    layout = Layout.of(
        [("a", (1, 3), "int32"), ("b", (128, 2), "float32"), ("c", (65,), "float32"), ("d", (), "int32")]
    )
    # 12 bytes, 1,024 bytes, 260 bytes and 4 bytes.
    assert [slot.offset for slot in layout.slots.values()] == [0, 256, 1280, 1792]
    assert [slot.nbytes for slot in layout.slots.values()] == [12, 1024, 260, 4]
    assert (layout.nbytes, layout.held) == (2048, 1300)


def test_nothing_takes_a_block_all_the_same():
    assert Layout.of([]).nbytes == 256


def test_views_are_of_the_block():
    layout = Layout.of([("a", (2,), "int32"), ("b", (1, 2), "float32")])
    block = np.zeros(layout.nbytes, np.uint8)
    views = layout.views(block)
    views["a"][:] = [1, 256]
    views["b"][:] = 1.0
    assert block[:8].tolist() == [1, 0, 0, 0, 0, 1, 0, 0]
    assert block[256:264].tolist() == [0, 0, 0x80, 0x3F] * 2  # 1.0 in IEEE 754, least significant byte first
