"""What a program's text says of transfers and memory traffic, on one whose figures are worked out by hand."""

from __future__ import annotations

import pytest

from experiments.planning.program import by_key, read_program

MESH = {"data": 2, "fsdp": 4, "context": 1, "tensor": 1, "expert": 1}

LOOP = """HloModule jit_step

FileNames
1 "/home/x/o3jax/models/text.py"
2 "/usr/lib/jax/api.py"

FunctionNames
1 "layer"

FileLocations
1 {file_name_id=1 function_name_id=1 line=42 end_line=42 column=1 end_column=2}
2 {file_name_id=2 function_name_id=1 line=7 end_line=7 column=1 end_column=2}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=1}


%body (p: (s32[], bf16[1024,512])) -> (s32[], bf16[1024,512]) {
  %p = (s32[], bf16[1024,512]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %w = bf16[1024,512]{1,0} get-tuple-element(%p), index=1
  %gather = (bf16[256,512]{1,0}, bf16[1024,512]{1,0}) all-gather-start(%w), replica_groups=[2,4]<=[8], \
dimensions={0}, metadata={op_name="x" stack_frame_id=2}
  %got = bf16[1024,512]{1,0} all-gather-done(%gather)
  ROOT %t = (s32[], bf16[1024,512]{1,0}) tuple(%i, %got)
}

%condition (q: (s32[], bf16[1024,512])) -> pred[] {
  %q = (s32[], bf16[1024,512]{1,0}) parameter(0)
  ROOT %less = pred[] constant(true)
}

%fused (a: f32[36,100,100], b: s32[]) -> f32[100,100] {
  %a = f32[36,100,100]{2,1,0} parameter(0)
  %b = s32[] parameter(1)
  %zero = s32[] constant(0)
  %slice = f32[1,100,100]{2,1,0} dynamic-slice(%a, %b, %zero, %zero), dynamic_slice_sizes={1,100,100}
  ROOT %view = f32[100,100]{1,0} bitcast(%slice)
}

ENTRY %main (x: bf16[1024,512], stack: f32[36,100,100], n: s32[]) -> f32[100,100] {
  %x = bf16[1024,512]{1,0} parameter(0)
  %stack = f32[36,100,100]{2,1,0} parameter(1)
  %n = s32[] parameter(2)
  %start = (s32[], bf16[1024,512]{1,0}) tuple(%n, %x)
  %loop = (s32[], bf16[1024,512]{1,0}) while(%start), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"36"}}
  %sum = f32[100,100]{1,0} all-reduce(%view0), replica_groups={{0,4},{1,5},{2,6},{3,7}}, to_apply=%add
  ROOT %layer = f32[100,100]{1,0} fusion(%stack, %n), kind=kLoop, calls=%fused
}
""".replace("\\\n", "")


def test_transfers_count_as_often_as_their_loop_runs_along_their_axes():
    program = read_program(LOOP, MESH)
    gather, reduce = program.collectives
    # Each of four chips sends three quarters of what is gathered, 36 times.
    assert gather.wire_bytes == 36 * 1024 * 512 * 2 * 3 / 4
    assert (gather.kind, gather.axes, gather.chips, gather.chips_apart) == ("all-gather", ("fsdp",), 4, 4)
    assert gather.source == "o3jax/models/text.py:42"  # of the frame in our code, not of the library's
    # A ring over two: what is reduced goes round twice, half of it each time.
    assert reduce.wire_bytes == 2 * 100 * 100 * 4 / 2
    assert (reduce.axes, reduce.chips, reduce.chips_apart) == (("data",), 2, 5)
    assert by_key(program.collectives, "axes") == pytest.approx({"fsdp": 0.028311552, "data": 4e-5})
    assert program.unknown_loops == 0


def test_what_a_tpu_passes_on_counts_once():
    """Its start holds what is sent, what comes, and two numbers that the chips agree by."""
    text = LOOP.replace(
        "(bf16[256,512]{1,0}, bf16[1024,512]{1,0}) all-gather-start(%w), replica_groups=[2,4]<=[8],",
        "(bf16[256,512]{1,0}, bf16[256,512]{1,0:T(8,128)}, u32[]{:S(2)}, u32[]{:S(2)}) "
        "collective-permute-start(%w), source_target_pairs={{0,1},{1,2},{2,3},{3,0}},",
    )
    program, whole = read_program(text, MESH), read_program(LOOP, MESH)
    (permute,) = [c for c in program.collectives if c.kind == "collective-permute"]
    assert permute.wire_bytes == 36 * 256 * 512 * 2 and permute.shape == "bf16[256,512]"
    # In memory it is read and written, as the gather reads a quarter of what it writes.
    assert whole.traffic - program.traffic == pytest.approx(36 * (5 - 2) * 256 * 512 * 2, rel=1e-4)


def test_a_fusion_that_slices_reads_the_slice():
    entry = read_program(LOOP.replace('"n":"36"', '"n":"0"'), MESH)
    slice_and_result, all_reduce = 2 * 100 * 100 * 4, 100 * 100 * 4
    assert entry.traffic == slice_and_result + all_reduce + 4


ROW_OF_A_SUM = """HloModule jit_step

%fused (a: f32[36,100,100], b: s32[], c: f32[1,100,100]) -> f32[36,100,100] {
  %a = f32[36,100,100]{2,1,0} parameter(0)
  %b = s32[] parameter(1)
  %c = f32[1,100,100]{2,1,0} parameter(2)
  %zero = s32[] constant(0)
  %slice = f32[1,100,100]{2,1,0} dynamic-slice(%a, %b, %zero, %zero), dynamic_slice_sizes={1,100,100}
  %more = f32[1,100,100]{2,1,0} add(%slice, %c)
  ROOT %sum = f32[36,100,100]{2,1,0} dynamic-update-slice(%a, %more, %b, %zero, %zero)
}

ENTRY %main (x: f32[36,100,100], n: s32[], c: f32[1,100,100]) -> f32[36,100,100] {
  %x = f32[36,100,100]{2,1,0} parameter(0)
  %n = s32[] parameter(1)
  %c = f32[1,100,100]{2,1,0} parameter(2)
  ROOT %layer = f32[36,100,100]{2,1,0} fusion(%x, %n, %c), kind=kLoop, calls=%fused
}
"""


def test_a_row_that_is_added_to_is_all_that_moves():
    row, number = 100 * 100 * 4, 4
    # The row is read; so is what is added, and the row counts as read and written where it is put back.
    assert read_program(ROW_OF_A_SUM, MESH).traffic == row + number + row + 2 * row


# An expert's weights are sliced in a fusion inside the one that multiplies with them.
EXPERT = """\
HloModule step

%weights (e: f32[128,100,100], f: s32[]) -> f32[100,100] {
  %e = f32[128,100,100]{2,1,0} parameter(0)
  %f = s32[] parameter(1)
  %zero = s32[] constant(0)
  %slice = f32[1,100,100]{2,1,0} dynamic-slice(%e, %f, %zero, %zero), dynamic_slice_sizes={1,100,100}
  ROOT %flat = f32[100,100]{1,0} bitcast(%slice)
}

%product (c: f32[8,100], a: f32[128,100,100], b: s32[]) -> f32[8,100] {
  %c = f32[8,100]{1,0} parameter(0)
  %a = f32[128,100,100]{2,1,0} parameter(1)
  %b = s32[] parameter(2)
  %w = f32[100,100]{1,0} fusion(%a, %b), kind=kLoop, calls=%weights
  ROOT %dot = f32[8,100]{1,0} convolution(%c, %w), dim_labels=bf_io->bf
}

ENTRY %main (x: f32[8,100], experts: f32[128,100,100], n: s32[]) -> f32[8,100] {
  %x = f32[8,100]{1,0} parameter(0)
  %experts = f32[128,100,100]{2,1,0} parameter(1)
  %n = s32[] parameter(2)
  ROOT %y = f32[8,100]{1,0} fusion(%x, %experts, %n), kind=kOutput, calls=%product
}
"""


def test_a_slice_in_a_fusion_inside_is_all_that_is_read():
    rows, expert, number = 8 * 100 * 4, 100 * 100 * 4, 4
    assert read_program(EXPERT, MESH).traffic == rows + expert + number + rows


def test_the_room_that_a_product_works_in_is_no_result():
    text = """HloModule jit_step

ENTRY %main (x: bf16[128,64], w: bf16[64,32]) -> bf16[128,32] {
  %x = bf16[128,64]{1,0} parameter(0)
  %w = bf16[64,32]{1,0} parameter(1)
  %both = (bf16[128,32]{1,0}, s8[33554432]{0}) custom-call(%x, %w), custom_call_target="__cublas$lt$matmul"
  ROOT %y = bf16[128,32]{1,0} get-tuple-element(%both), index=0
}
"""
    program = read_program(text, MESH)
    assert program.traffic == 2 * (128 * 64 + 64 * 32 + 128 * 32)


def test_a_loop_s_length_may_stand_in_its_condition_alone():
    text = LOOP.replace('backend_config={"known_trip_count":{"n":"36"}}', "metadata={}").replace(
        "ROOT %less = pred[] constant(true)",
        "%i2 = s32[] get-tuple-element(%q), index=0\n  %end = s32[]{:T(128)} constant(36)\n"
        "  ROOT %less = pred[] compare(%i2, %end), direction=LT",
    )
    assert read_program(text, MESH) == read_program(LOOP, MESH)


def test_a_loop_of_unknown_length_counts_as_assumed():
    text = LOOP.replace('backend_config={"known_trip_count":{"n":"36"}}', "metadata={}")
    once, often = (read_program(text, MESH, assumed=n) for n in (1, 5))
    assert once.unknown_loops == often.unknown_loops == 1
    assert often.collectives[0].wire_bytes == 5 * once.collectives[0].wire_bytes


@pytest.mark.parametrize(
    ("groups", "axes", "chips"),
    [
        ("replica_groups={{0,1,2,3},{4,5,6,7}}", ("fsdp",), 4),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", ("data",), 2),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0'}", ("data",), 2),
        ("replica_groups=mesh['axis_0'=8] {'axis_0'}", ("data", "fsdp"), 8),
        ("source_target_pairs={{0,1},{1,2},{2,3},{3,0}}", ("fsdp",), 2),
    ],
)
def test_groups_are_told_in_many_ways(groups, axes, chips):
    text = LOOP.replace("replica_groups=[2,4]<=[8]", groups)
    (gather,) = [c for c in read_program(text, MESH).collectives if c.kind == "all-gather"]
    assert (gather.axes, gather.chips) == (axes, chips)
