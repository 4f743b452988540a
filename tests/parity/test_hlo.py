"""The reader of compiled programs, on small texts in the compiler's own form."""

import pytest

from parity import hlo

LOOP = """HloModule m

%fused_transpose (param_0: f32[4,8]) -> f32[8,4] {
  %param_0 = f32[4,8]{1,0} parameter(0)
  ROOT %transpose.1 = f32[8,4]{1,0} transpose(%param_0), dimensions={1,0}
}

%fused_put (param_0.1: f32[100,4], param_1.1: f32[8,4], param_2: s32[]) -> f32[100,4] {
  %param_0.1 = f32[100,4]{1,0} parameter(0)
  %param_1.1 = f32[8,4]{1,0} parameter(1)
  %param_2 = s32[] parameter(2)
  ROOT %put = f32[100,4]{1,0} dynamic-update-slice(%param_0.1, %param_1.1, %param_2, %param_2)
}

%body (p: (s32[], f32[4,8], f32[100,4])) -> (s32[], f32[4,8], f32[100,4]) {
  %p = (s32[], f32[4,8]{1,0}, f32[100,4]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[4,8]{1,0} get-tuple-element(%p), index=1
  %rows = f32[100,4]{1,0} get-tuple-element(%p), index=2
  %turned = f32[8,4]{1,0} fusion(%x), kind=kInput, calls=%fused_transpose, metadata={op_name="f(g)"}
  %more = f32[100,4]{1,0} fusion(%rows, %turned, %i), kind=kLoop, calls=%fused_put
  ROOT %out = (s32[], f32[4,8]{1,0}, f32[100,4]{1,0}) tuple(%i, %x, %more)
}

%condition (p.1: (s32[], f32[4,8], f32[100,4])) -> pred[] {
  %p.1 = (s32[], f32[4,8]{1,0}, f32[100,4]{1,0}) parameter(0)
  ROOT %go = pred[] constant(true)
}

ENTRY %main.1 (a: f32[4,8], b: f32[100,4]) -> f32[100,4] {
  %a = f32[4,8]{1,0} parameter(0)
  %b = f32[100,4]{1,0} parameter(1)
  %zero = s32[] constant(0)
  %start = (s32[], f32[4,8]{1,0}, f32[100,4]{1,0}) tuple(%zero, %a, %b)
  %loop = (s32[], f32[4,8]{1,0}, f32[100,4]{1,0}) while(%start), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"5"}}
  ROOT %r = f32[100,4]{1,0} get-tuple-element(%loop), index=2
}
"""

CALLS = """HloModule m

ENTRY %main.2 (x: bf16[2,8,8,8], w: bf16[8,3,3,4]) -> bf16[2,8,8,8] {
  %x = bf16[2,8,8,8]{3,2,1,0} parameter(0)
  %w = bf16[8,3,3,4]{3,2,1,0} parameter(1)
  %conv = (bf16[2,8,8,8]{3,2,1,0}, u8[0]{0}) custom-call(%x, %w), window={size=3x3 pad=1_1x1_1}, \
dim_labels=b01f_o01i->b01f, feature_group_count=2, custom_call_target="__cudnn$convForward"
  %y = bf16[2,8,8,8]{3,2,1,0} get-tuple-element(%conv), index=0
  %sum = (bf16[2,8,8,8]{3,2,1,0}, bf16[2,8,8,8]{3,2,1,0}) all-reduce-start(%y), to_apply=%add
  ROOT %all = bf16[2,8,8,8]{3,2,1,0} all-reduce-done(%sum)
}
"""


def test_a_loop_counts_by_its_trips():
    assert [(launch.instruction.name, launch.times) for launch in hlo.launches(hlo.parse(LOOP))] == [
        ("turned", 5),
        ("more", 5),
    ]


def test_a_loop_counts_by_its_condition_if_nothing_is_known():
    limit = """%limit = s32[] constant(7)
  %i.1 = s32[] get-tuple-element(%p.1), index=0
  ROOT %go = pred[] compare(%i.1, %limit), direction=LT"""
    text = LOOP.replace("known_trip_count", "unknown").replace("ROOT %go = pred[] constant(true)", limit)
    assert [launch.times for launch in hlo.launches(hlo.parse(text))] == [7, 7]


def test_a_loop_of_unknown_length_counts_once():
    program = hlo.parse(LOOP.replace("known_trip_count", "unknown"))
    assert [launch.times for launch in hlo.launches(program)] == [1, 1]


def test_bytes_of_what_is_put_into_more_are_those_of_the_part():
    program = hlo.parse(LOOP)
    turned, more = hlo.launches(program)
    assert hlo.moved(program, turned) == 2 * 4 * 8 * 4
    assert hlo.moved(program, more) == 2 * 8 * 4 * 4 + 4  # the part is read and written, its place is read


def test_only_what_reorders_shuffles():
    program = hlo.parse(LOOP)
    assert [hlo.shuffles(program, launch) for launch in hlo.launches(program)] == [True, False]
    for flat in (LOOP.replace("f32[4,8]", "f32[1,8]").replace("f32[8,4]", "f32[8,1]"),):
        assert not any(hlo.shuffles(hlo.parse(flat), launch) for launch in hlo.launches(hlo.parse(flat)))


def test_a_transpose_of_axes_that_lie_so_already_moves_nothing():
    text = LOOP.replace("ROOT %transpose.1 = f32[8,4]{1,0}", "ROOT %transpose.1 = f32[8,4]{0,1}")
    program = hlo.parse(text)
    assert not any(hlo.shuffles(program, launch) for launch in hlo.launches(program))


def test_library_calls_and_collectives():
    program = hlo.parse(CALLS)
    conv, reduce = hlo.launches(program)  # what only waits for it is not launched
    (call,) = hlo.convolutions(program, conv)
    assert call == ("convForward", (3, 3), 2)
    assert call.is_forward
    assert str(call) == "convForward 3x3 in 2 groups"
    assert reduce.instruction.op.removesuffix("-start") in hlo.COLLECTIVES
    assert hlo.received(reduce) == 2 * 8 * 8 * 8 * 2
    assert hlo.moved(program, conv) == 2 * (2 * 2 * 8 * 8 * 8 + 8 * 3 * 3 * 4)


def test_a_backward_filter_is_no_forward_convolution():
    program = hlo.parse(CALLS.replace("convForward", "convBackwardFilter"))
    calls = [call for launch in hlo.launches(program) for call in hlo.convolutions(program, launch)]
    assert [call.is_forward for call in calls] == [False]


@pytest.mark.parametrize(("shape", "size"), [("f32[]", 4), ("(bf16[2,3]{1,0}, s32[4])", 28), ("token[]", 0)])
def test_sizes_of_shapes(shape, size):
    assert hlo.size(shape) == size


def test_what_is_no_program_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.parse("HloModule m\n")
